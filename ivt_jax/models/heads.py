"""Heads of masked reconstruction; training alone uses them, inference drops them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivt_jax.models.blocks import activate, dense, layer_norm


class WordHead(nn.Module):
    """Tokens to vocabulary logits: dense, GELU, norm, then the word embedding itself as decoder (BERT's form)."""

    width: int
    vocab_size: int

    @nn.compact
    def __call__(self, tokens: jax.Array, word_embedding: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """(..., D) and (V, D) -> (..., V) float32 logits."""
        small = nn.initializers.normal(0.02)
        kernel = self.param("kernel", small, (self.width, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        norm = self.param("norm", lambda _: {"scale": jnp.ones(self.width), "bias": jnp.zeros(self.width)})
        output_bias = self.param("output", lambda _: {"bias": jnp.zeros(self.vocab_size)})["bias"]
        hidden = dense({"kernel": kernel, "bias": bias}, tokens.astype(dtype))
        hidden = layer_norm(norm, activate(hidden)).astype(dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, word_embedding.astype(dtype), preferred_element_type=jnp.float32)
        return logits + output_bias


class PatchHead(nn.Module):
    """Tokens to the pixels of their patch."""

    patch_size: int

    @nn.compact
    def __call__(self, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """(..., D) -> (..., patch_size * patch_size * 3) float32, in the order of `extract_patches`."""
        outputs = self.patch_size**2 * 3
        kernel = self.param("kernel", nn.initializers.normal(0.02), (tokens.shape[-1], outputs))
        bias = self.param("bias", nn.initializers.zeros, (outputs,))
        return dense({"kernel": kernel, "bias": bias}, tokens.astype(dtype)).astype(jnp.float32)
