"""Weights of other programs: the IVT release's, ImageNet ViTs, BERT. `ivt_jax.convert` is the command line."""

from ivt_jax.conversion.release import params_from_release, release_from_params

__all__ = ["params_from_release", "release_from_params"]
