"""How good the retrieval of a model is: embedding, ranking, protocols, and what is told of it."""

from ivt_jax.evaluation.ranking import retrieval_metrics

__all__ = ["retrieval_metrics"]
