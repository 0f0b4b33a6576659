"""Heads of masked reconstruction, used in training only."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivt_jax.models.ops import activate, dense, layer_norm, norm_params


class WordHead(nn.Module):
    """BERT's head: dense, GELU, norm, then the word embedding as decoder."""

    @nn.compact
    def __call__(self, tokens: jax.Array, word_embedding: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Returns the logits (..., V) float32 of tokens (..., D) with the word embedding (V, D)."""
        vocab_size, width = word_embedding.shape
        kernel = self.param("kernel", nn.initializers.normal(0.02), (width, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        norm = self.param("norm", lambda _: norm_params(width))
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
