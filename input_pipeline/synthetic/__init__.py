"""PEDES-Synth, a generated benchmark of pedestrian crops with captions, for use without a real dataset.

`python -m input_pipeline.synthetic --out=DIR` writes a dataset in the layout of CUHK-PEDES, which the loader of the
real datasets reads. Needs Pillow and NumPy only.
"""
