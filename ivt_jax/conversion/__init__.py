"""Weights of other programs: the IVT release, VLMo, CLIP, SigLIP, ViT, BERT. `ivt_jax.convert` is the command."""

from ivt_jax.conversion.release import params_from_release, release_from_params
from ivt_jax.conversion.vlmo import params_from_vlmo

__all__ = ["params_from_release", "params_from_vlmo", "release_from_params"]
