"""From pixels and token ids to the sequences that enter the blocks (IVT, section 3.1; ViT; BERT)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ops import layer_norm, norm_params
from ivt_jax.models.patches import patch_grid

TEXT_NORM_EPSILON = 1e-12  # BERT's


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
    """[CLS] and patches plus learned positions and types; with `image_norm` a layer norm over the sum.

    With two towers there are no types and no mask token; with attention pooling there is no [CLS].
    """

    config: IVTConfig

    @nn.compact
    def __call__(self, images: jax.Array, patch_mask: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
        """(B, H, W, 3) normalised pixels -> (B, 1 + P, width) in `dtype`, (B, P, width) without [CLS].

        A learned token replaces the patches where `patch_mask` (B, P) is True, before positions are added.
        """
        c = self.config
        if images.shape[1:3] != c.image_size:
            raise ValueError(f"images are {images.shape[1:3]}, the model was built for {c.image_size}")
        small = nn.initializers.normal(c.init_std)  # timm truncates at 2 and -2, which cuts nothing off
        fan_out = nn.initializers.normal(np.sqrt(2 / (c.patch_size**2 * c.width)))
        kernel = self.param("kernel", fan_out, (c.patch_size**2 * 3, c.width))
        bias = self.param("bias", nn.initializers.zeros, (c.width,))
        cls: jax.Array | None = self.param("cls", small, (1, 1, c.width)) if c.has_class_token else None
        if c.towers == 1:
            mask_token = self.param("mask_token", small, (1, 1, c.width))
        # With relative position biases, absolute positions are not needed and start at 0, as in TextEmbedding.
        learned = nn.initializers.zeros if c.relative_positions else small
        positions = self.param("pos_embed", learned, (1, c.image_tokens, c.width))
        if c.towers == 1:
            positions = positions + self.param("type_embed", small, (1, c.image_tokens, c.width))

        tokens = extract_patches(images.astype(dtype), c.patch_size, c.stride) @ kernel.astype(dtype)
        tokens = tokens + bias.astype(dtype)
        if patch_mask is not None:
            tokens = jnp.where(patch_mask[..., None], mask_token.astype(dtype), tokens)
        if cls is not None:
            cls = jnp.broadcast_to(cls.astype(dtype), (images.shape[0], 1, c.width))
            tokens = jnp.concatenate([cls, tokens], axis=1)
        tokens = tokens + positions.astype(dtype)
        if c.image_norm:
            norm = self.param("norm", norm_params, c.width)
            tokens = layer_norm(norm, tokens, c.norm_epsilon).astype(dtype)
        return tokens


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the others. keys (B,), one for each row of x (B, ...)."""
    if keys is None or rate == 0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


class TextEmbedding(nn.Module):
    """BERT's embeddings: word + position + token type (always 0), layer norm, dropout."""

    config: IVTConfig

    def setup(self):
        c = self.config
        # The release draws these from N(0, 1) and then loads BERT; from scratch, that ruins the tied decoder.
        small = nn.initializers.normal(0.02)
        self.word = self.param("word", small, (c.vocab_size, c.width))
        learned = nn.initializers.zeros if c.relative_positions else small
        self.position = self.param("position", learned, (c.max_text_length, c.width))
        self.token_type = self.param("token_type", small, (2, c.width))
        self.scale = self.param("scale", nn.initializers.ones, (c.width,))
        self.bias = self.param("bias", nn.initializers.zeros, (c.width,))

    def __call__(self, ids: jax.Array, dtype: jnp.dtype, keys: jax.Array | None = None) -> jax.Array:
        """(B, L) int32 -> (B, L, width) in `dtype`; keys (B,) for dropout, None = no dropout."""
        tokens = words_and_positions(self.word, self.position, ids) + self.token_type[0]
        tokens = layer_norm({"scale": self.scale, "bias": self.bias}, tokens, TEXT_NORM_EPSILON)
        return dropout(tokens, self.config.dropout, keys).astype(dtype)


class PlainTextEmbedding(nn.Module):
    """Word + position, then dropout: the text embedding of CLIP and SigLIP, without types and norm."""

    config: IVTConfig

    def setup(self):
        c = self.config
        small = nn.initializers.normal(c.init_std)
        self.word = self.param("word", small, (c.vocab_size, c.width))
        self.position = self.param("position", small, (c.max_text_length, c.width))

    def __call__(self, ids: jax.Array, dtype: jnp.dtype, keys: jax.Array | None = None) -> jax.Array:
        """As in `TextEmbedding`."""
        return dropout(words_and_positions(self.word, self.position, ids), self.config.dropout, keys).astype(dtype)


def words_and_positions(word: jax.Array, position: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns the sum of word (V, D) and position (L, D) embeddings of ids (B, l). Raises ValueError if l exceeds L."""
    length, longest = ids.shape[1], len(position)
    if length > longest:
        raise ValueError(f"texts of {length} tokens, the model has {longest} text positions")
    return word[ids] + position[:length]
