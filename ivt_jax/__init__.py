"""IVT: text-based person retrieval with one transformer for both modalities, in JAX."""
