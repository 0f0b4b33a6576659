"""The single tower: embeddings, blocks, heads."""
