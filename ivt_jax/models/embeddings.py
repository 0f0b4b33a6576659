"""From pixels and token ids to the sequences that enter the tower (REFERENCE: IVT section 3.1, ViT, BERT)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ivt_jax.models.blocks import layer_norm
from ivt_jax.models.patches import patch_grid

TEXT_NORM_EPSILON = 1e-12  # BERT's; the tower's own norms have `norm_epsilon`, ViT's 1e-6


def extract_patches(images: jax.Array, patch_size: int, stride: int) -> jax.Array:
    """(B, H, W, C) -> (B, P, patch_size * patch_size * C), patches row by row, pixels as (row, column, channel)."""
    batch, height, width, channels = images.shape
    rows, columns = patch_grid((height, width), patch_size, stride)
    if stride == patch_size:  # a reshape is much cheaper than the gather below
        cropped = images[:, : rows * patch_size, : columns * patch_size]
        windows = cropped.reshape(batch, rows, patch_size, columns, patch_size, channels)
    else:
        row_index = np.arange(rows)[:, None] * stride + np.arange(patch_size)
        column_index = np.arange(columns)[:, None] * stride + np.arange(patch_size)
        windows = images[:, row_index][:, :, :, column_index]
    return windows.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


class ImageEmbedding(nn.Module):
    """[CLS] + patches, plus learned position and type embeddings; with `image_norm` a layer norm over the sum.

    `patch_mask` (B, P) replaces patches by a learned token before the positions are added, for masked reconstruction.
    """

    image_size: tuple[int, int]
    patch_size: int
    stride: int
    width: int
    init_std: float
    image_norm: bool
    norm_epsilon: float

    @nn.compact
    def __call__(self, images: jax.Array, patch_mask: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
        """(B, H, W, 3) normalised pixels -> (B, 1 + P, width) in `dtype`."""
        if images.shape[1:3] != tuple(self.image_size):
            raise ValueError(f"images are {images.shape[1:3]}, the model was built for {tuple(self.image_size)}")
        small = nn.initializers.normal(self.init_std)  # timm's truncation, at 2 and -2, cuts nothing off
        fan = nn.initializers.normal(np.sqrt(2 / (self.patch_size**2 * self.width)))
        rows, columns = patch_grid(self.image_size, self.patch_size, self.stride)
        kernel = self.param("kernel", fan, (self.patch_size**2 * 3, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        cls = self.param("cls", small, (1, 1, self.width))
        mask_token = self.param("mask_token", small, (1, 1, self.width))
        positions = self.param("pos_embed", small, (1, 1 + rows * columns, self.width))
        types = self.param("type_embed", small, (1, 1 + rows * columns, self.width))

        patches = extract_patches(images.astype(dtype), self.patch_size, self.stride)
        tokens = patches @ kernel.astype(dtype) + bias.astype(dtype)
        if patch_mask is not None:
            tokens = jnp.where(patch_mask[..., None], mask_token.astype(dtype), tokens)
        cls = jnp.broadcast_to(cls.astype(dtype), (images.shape[0], 1, self.width))
        tokens = jnp.concatenate([cls, tokens], axis=1) + (positions + types).astype(dtype)
        if self.image_norm:
            norm = self.param("norm", lambda _: {"scale": jnp.ones(self.width), "bias": jnp.zeros(self.width)})
            tokens = layer_norm(norm, tokens, self.norm_epsilon).astype(dtype)
        return tokens


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Zeros with probability `rate`, the others scaled: a row of x (B, ...) by its own one of keys (B,)."""
    if keys is None or rate == 0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


class TextEmbedding(nn.Module):
    """BERT's embeddings: word + position + token type (always 0), layer norm, dropout."""

    vocab_size: int
    max_length: int
    width: int
    dropout: float

    def setup(self):
        # The release leaves these at N(0, 1), which BERT weights overwrite; from scratch that ruins a tied decoder.
        small = nn.initializers.normal(0.02)
        self.word = self.param("word", small, (self.vocab_size, self.width))
        self.position = self.param("position", small, (self.max_length, self.width))
        self.token_type = self.param("token_type", small, (2, self.width))
        self.scale = self.param("scale", nn.initializers.ones, (self.width,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,))

    def __call__(self, ids: jax.Array, dtype: jnp.dtype, keys: jax.Array | None = None) -> jax.Array:
        """(B, L) int32 -> (B, L, width) in `dtype`; keys (B,) for dropout, None = no dropout."""
        length = ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"texts of {length} tokens, the model has {self.max_length} text positions")
        tokens = self.word[ids] + self.position[:length] + self.token_type[0]
        tokens = layer_norm({"scale": self.scale, "bias": self.bias}, tokens, TEXT_NORM_EPSILON)
        return dropout(tokens, self.dropout, keys).astype(dtype)
