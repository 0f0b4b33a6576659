"""Heads of masked reconstruction, used in training only; projections to embeddings and the scale of similarities."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivt_jax.models.ops import Params, activate, dense, layer_norm, norm_params

INITIAL_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # CLIP's (Radford et al. 2021, section 2.5)
INITIAL_BIAS = -10.0  # SigLIP's (Zhai et al. 2023, section 3.2)


class WordHead(nn.Module):
    """BERT's head: dense, GELU, norm, then the word embedding as decoder."""

    @nn.compact
    def __call__(self, tokens: jax.Array, word_embedding: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Returns the logits (..., V) float32 of tokens (..., D) with the word embedding (V, D)."""
        vocab_size, width = word_embedding.shape
        kernel = self.param("kernel", nn.initializers.normal(0.02), (width, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        norm = self.param("norm", norm_params, width)
        output_bias = self.param("output", lambda _: {"bias": jnp.zeros(vocab_size)})["bias"]
        hidden = dense({"kernel": kernel, "bias": bias}, tokens.astype(dtype))
        hidden = layer_norm(norm, activate(hidden)).astype(dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, word_embedding.astype(dtype), preferred_element_type=jnp.float32)
        return logits + output_bias


class PatchHead(nn.Module):
    """Linear from a token to the pixels of its patch."""

    patch_size: int

    @nn.compact
    def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Returns (..., patch_size * patch_size * 3) float32 in the order of `extract_patches`, of tokens (..., D)."""
        outputs = self.patch_size**2 * 3
        kernel = self.param("kernel", nn.initializers.normal(0.02), (tokens.shape[-1], outputs))
        bias = self.param("bias", nn.initializers.zeros, (outputs,))
        return dense({"kernel": kernel, "bias": bias}, tokens.astype(dtype)).astype(jnp.float32)


def init_projection(key: jax.Array, inputs: int, outputs: int, bias: bool = False) -> dict[str, jax.Array]:
    """Returns the initial parameters of a projection: kernel (inputs, outputs); bias (outputs,), as in SigLIP."""
    kernel = {"kernel": nn.initializers.normal(inputs**-0.5)(key, (inputs, outputs))}
    return kernel | ({"bias": jnp.zeros(outputs)} if bias else {})


def project(p: Params, x: jax.Array) -> jax.Array:
    """Returns the projection of x (B, D) float32; float32, whatever the dtype of the activations."""
    return x @ p["kernel"] + p["bias"] if "bias" in p else x @ p["kernel"]


def init_similarity(_: jax.Array, bias: bool = False) -> dict[str, jax.Array]:
    """Returns the initial logarithm () of the scale of similarities, and SigLIP's bias (), which only its loss uses."""
    log_scale = {"log_scale": jnp.log(jnp.float32(INITIAL_SCALE))}
    return log_scale | ({"bias": jnp.float32(INITIAL_BIAS)} if bias else {})


def similarity_scale(p: Params) -> jax.Array:
    """Returns the learned scale () of similarities, CLIP's logit scale, at most LARGEST_SCALE."""
    return jnp.minimum(jnp.exp(p["log_scale"]), LARGEST_SCALE)
