"""A trained model as a self-contained folder: parameters, tokenizer, config, model card, compiled encoders."""
