"""A trained model as a folder that is complete in itself: parameters in several formats, tokenizer, config, model card.

`run.export` writes it; `--mode=export` is the command line.
"""
