"""The model, one tower or two: embeddings, blocks, heads."""
