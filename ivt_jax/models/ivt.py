"""IVT: one transformer for images, texts, and both at once (Shu et al. 2022, section 3.1).

model = IVT(IVTConfig.base())
params = model.init(jax.random.key(0))["params"]
tokens = model.apply({"params": params}, images, method="encode_image")   # embedding: tokens[:, 0]
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from ivt_jax.models.blocks import NORM_EPSILON, Blocks
from ivt_jax.models.embeddings import ImageEmbedding, TextEmbedding
from ivt_jax.models.heads import PatchHead, WordHead
from ivt_jax.models.patches import num_patches, patch_grid

PAD_ID = 0  # the tokenizer asserts it; the mask of a row of ids is ids != PAD_ID

Selection = tuple[jax.Array, jax.Array | None]
"""Which tokens enter the blocks: indices (B or 1, K) int32, the first of them 0, and valid (B or 1, K) bool or None."""


@dataclasses.dataclass(frozen=True)
class IVTConfig:
    """Sizes of the tower; the defaults are the paper's ViT-B/16 at 384x128.

    init_std: deviation of the initial linear layers, class token and positions; a narrow tower wants more than ViT-B.
    image_norm, image_activation, norm_epsilon: what CLIP's image tower has otherwise than a ViT (True, "quick_gelu",
    1e-5): a layer norm on the image tokens before the blocks, the activation of `mlp_vis`, and the epsilon of that norm
    and of the blocks'; those of the text embedding and of the heads are fixed.
    unroll: compile every block by itself instead of one loop over them. remat: recompute cheap activations.
    attention: "xla", or "cudnn" for cuDNN's kernel where there is a GPU.
    """

    image_size: tuple[int, int] = (384, 128)
    patch_size: int = 16
    stride: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    vocab_size: int = 30522
    max_text_length: int = 512
    dropout: float = 0.1
    drop_path: float = 0.1
    dtype: str = "float32"
    remat: bool = False
    unroll: bool = False
    init_std: float = 0.02
    image_norm: bool = False
    image_activation: str = "gelu"
    norm_epsilon: float = NORM_EPSILON
    attention: str = "xla"

    @classmethod
    def from_config(cls, model: Mapping[str, Any]) -> "IVTConfig":
        """From `config.model` of a run."""
        values = {**model}
        return cls(**{**values, "image_size": tuple(values["image_size"])})

    @classmethod
    def base(cls, **changes) -> "IVTConfig":
        """ViT-B: width 768, depth 12."""
        return cls(**changes)

    @classmethod
    def small(cls, **changes) -> "IVTConfig":
        """ViT-S: width 384, depth 12."""
        return cls(**{"width": 384, "num_heads": 6, **changes})

    @classmethod
    def tiny(cls, **changes) -> "IVTConfig":
        """The demo's size: 96x48 pixels, width 128, depth 4."""
        sizes = {"image_size": (96, 48), "patch_size": 12, "stride": 12, "width": 128, "depth": 4, "num_heads": 4}
        return cls(**{**sizes, "max_text_length": 64, "vocab_size": 2726, **changes})

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.image_size, self.patch_size, self.stride)

    @property
    def num_patches(self) -> int:
        return num_patches(self.image_size, self.patch_size, self.stride)


class IVT(nn.Module):
    """The tower and its heads. Every `encode_*` returns float32 tokens after the final norm; token 0 is the embedding.

    Training passes `keys` (B,): a row's dropout and stochastic depth follow from its key, whatever other rows it stands
    among. Without keys there is neither.
    """

    config: IVTConfig

    def setup(self):
        c = self.config
        self.image_embedding = ImageEmbedding(
            c.image_size, c.patch_size, c.stride, c.width, c.init_std, c.image_norm, c.norm_epsilon
        )
        self.text_embedding = TextEmbedding(c.vocab_size, c.max_text_length, c.width, c.dropout)
        self.blocks = Blocks(
            c.depth, c.width, c.num_heads, c.mlp_ratio, c.drop_path, c.remat, c.unroll, c.init_std, c.image_activation,
            c.norm_epsilon, c.attention,
        )  # fmt: skip
        self.word_head = WordHead(c.width, c.vocab_size)
        self.patch_head = PatchHead(c.patch_size)

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.dtype)

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Touches every parameter, so that `init` creates all of them."""
        images = jnp.zeros((1, *self.config.image_size, 3))
        ids = jnp.zeros((1, 2), jnp.int32)
        patch_mask = jnp.zeros((1, self.config.num_patches), bool)
        image_tokens, text_tokens = self.encode_joint(images, ids, ids == 0, patch_mask=patch_mask)
        return self.word_logits(text_tokens), self.patch_pixels(image_tokens)

    def encode_image(
        self, images: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """(B, H, W, 3) normalised -> (B, 1 + P, D), or (B, K, D) of the tokens that `keep` selects."""
        tokens, mask = self.image_embedding(images, None, self.dtype), None
        if keep is not None:
            tokens, mask = _select(tokens, mask, keep)
        return self.blocks(tokens, mask, tokens.shape[1], keys)

    def encode_text(
        self, ids: jax.Array, mask: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """ids (B, L) int32, mask (B, L) False at padding, which comes last -> (B, L, D), or (B, K, D) of `keep`."""
        embedding_keys, block_keys = _two(keys)
        tokens = self.text_embedding(ids, self.dtype, embedding_keys)
        kept: jax.Array | None = mask
        if keep is not None:
            tokens, kept = _select(tokens, mask, keep)
        return self.blocks(tokens, kept, 0, block_keys)

    def encode_joint(
        self,
        images: jax.Array,
        ids: jax.Array,
        mask: jax.Array,
        *,
        patch_mask: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Both token sequences as one: attention over both, each token through its modality's MLP.

        `patch_mask` (B, P) bool hides patches behind the mask token. Returns (B, 1 + P, D) and (B, L, D).
        """
        image = self.image_embedding(images, patch_mask, self.dtype)
        embedding_keys, block_keys = _two(keys)
        text = self.text_embedding(ids, self.dtype, embedding_keys)
        num_image = image.shape[1]
        mask = jnp.concatenate([jnp.ones(image.shape[:2], bool), mask], axis=1)
        tokens = self.blocks(jnp.concatenate([image, text], axis=1), mask, num_image, block_keys)
        return tokens[:, :num_image], tokens[:, num_image:]

    def word_logits(self, tokens: jax.Array) -> jax.Array:
        """(..., D) -> (..., vocab_size) float32."""
        return self.word_head(tokens, self.text_embedding.word, self.dtype)

    def patch_pixels(self, tokens: jax.Array) -> jax.Array:
        """(..., D) -> (..., patch_size * patch_size * 3) float32."""
        return self.patch_head(tokens, self.dtype)


def _two(keys: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Two keys of each row's one."""
    return (None, None) if keys is None else tuple(jax.vmap(jax.random.split, out_axes=1)(keys))


def _select(tokens: jax.Array, mask: jax.Array | None, keep: Selection) -> tuple[jax.Array, jax.Array | None]:
    """Gathers the kept tokens; what is not valid counts as padding."""
    indices, valid = keep
    indices = jnp.broadcast_to(indices, (tokens.shape[0], indices.shape[1]))
    tokens = jnp.take_along_axis(tokens, indices[..., None], axis=1)
    if mask is not None:
        mask = jnp.take_along_axis(mask, indices, axis=1)
        return tokens, mask if valid is None else mask & valid
    return tokens, None if valid is None else jnp.broadcast_to(valid, indices.shape)


@functools.cache
def parameter_shapes(model_config: IVTConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its path, such as "blocks/attn/qkv/kernel"; allocates nothing."""
    shapes = jax.eval_shape(lambda: IVT(model_config).init(jax.random.key(0))["params"])
    return {path: value.shape for path, value in flatten_dict(shapes, sep="/").items()}
