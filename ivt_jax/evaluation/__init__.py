"""Retrieval scores of a model: embeddings of a split, ranking, protocols, calibration, and the results of a run."""

from ivt_jax.evaluation.ranking import retrieval_metrics

__all__ = ["retrieval_metrics"]
