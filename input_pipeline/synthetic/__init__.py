"""PEDES-Synth: a generated benchmark of pedestrian crops with captions, for machines without any dataset.

Everything here needs Pillow and NumPy only. `python -m input_pipeline.synthetic --out=DIR` writes a dataset in the raw
layout of CUHK-PEDES, so that the loader of the real datasets reads it.
"""
