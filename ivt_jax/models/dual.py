"""Two towers, one for images and one for texts, as in CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023).

model = Dual(IVTConfig(towers=2, projection=512))
params = model.init(jax.random.key(0))["params"]
embeddings = model.apply({"params": params}, images, method="embed_image")  # (B, D)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivt_jax.models.blocks import Blocks
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.embeddings import ImageEmbedding, PlainTextEmbedding
from ivt_jax.models.heads import init_projection, init_similarity, project, similarity_scale
from ivt_jax.models.pooling import AttentionPooling
from ivt_jax.models.selection import Selection, pool, pooled_places, select, split_keys


class Dual(nn.Module):
    """The two towers. `encode_*` return float32 tokens after the final norm, `embed_*` the embeddings of rows.

    Arguments and random draws are those of `IVT`; there is no joint pass, and there are no reconstruction heads.
    """

    config: IVTConfig

    def setup(self):
        c = self.config
        self.image_embedding = ImageEmbedding(c)
        self.image_blocks = Blocks(c, mlps=("mlp",))
        self.text_embedding = PlainTextEmbedding(c.text_tower)
        self.text_blocks = Blocks(c.text_tower, mlps=("mlp",), causal=c.text.causal)
        self.image_head = None if c.has_class_token else AttentionPooling(c)
        if c.projection and c.has_class_token:
            self.image_projection = self.param("image_projection", init_projection, c.width, c.projection)
        if c.projection:
            sizes = c.text.width, c.projection, c.text.projection_bias
            self.text_projection = self.param("text_projection", init_projection, *sizes)
        self.similarity = self.param("similarity", init_similarity, not c.has_class_token)

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.dtype)

    def __call__(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Runs both towers, so that `init` creates every parameter."""
        ids = jnp.zeros((1, 2), jnp.int32)
        return (
            self.embed_image(jnp.zeros((1, *self.config.image_size, 3))),
            self.embed_text(ids, ids == 0),
            self.scale(),
        )

    def scale(self) -> jax.Array:
        """Returns the learned scale () float32 of similarities, at most 100."""
        return similarity_scale(self.similarity)

    def embed_image(
        self, images: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns the embeddings (B, D) float32, not normalised, of `encode_image`'s arguments."""
        tokens, mask = self._image(images, keep, keys)
        if self.image_head is not None:
            return self.image_head(tokens, mask, self.dtype)
        return project(self.image_projection, tokens[:, 0]) if self.config.projection else tokens[:, 0]

    def embed_text(
        self, ids: jax.Array, mask: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns the embeddings (B, D) float32, not normalised, of `encode_text`'s arguments."""
        tokens = self.encode_text(ids, mask, keep=keep, keys=keys)
        pooled = pool(tokens, pooled_places(mask, self.config.text.pooling), keep)
        return project(self.text_projection, pooled) if self.config.projection else pooled

    def encode_image(
        self, images: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """(B, H, W, 3) normalised -> (B, N, D), [CLS] first if there is one, or (B, K, D) of `keep`."""
        return self._image(images, keep, keys)[0]

    def encode_text(
        self, ids: jax.Array, mask: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """ids (B, L) int32, mask (B, L) False at padding, which comes last -> (B, L, D), or (B, K, D) of `keep`."""
        embedding_keys, block_keys = split_keys(keys)
        tokens, kept = select(self.text_embedding(ids, self.dtype, embedding_keys), mask, keep)
        return self.text_blocks(tokens, kept, 0, block_keys)

    def _image(
        self, images: jax.Array, keep: Selection | None, keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the tokens of images after the final norm, and their mask."""
        tokens, mask = select(self.image_embedding(images, None, self.dtype), None, keep)
        return self.image_blocks(tokens, mask, tokens.shape[1], keys), mask
