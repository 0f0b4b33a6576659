"""From pictures and texts to embeddings, with the model of a run."""
