"""IVT: one transformer for images, texts, and both at once (Shu et al. 2022, section 3.1).

model = IVT(IVTConfig())
params = model.init(jax.random.key(0))["params"]
embeddings = model.apply({"params": params}, images, method="embed_image")  # (B, D)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivt_jax.models.blocks import Blocks
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.embeddings import ImageEmbedding, TextEmbedding
from ivt_jax.models.heads import PatchHead, WordHead, init_projection, init_similarity, project, similarity_scale
from ivt_jax.models.selection import Selection, select, split_keys


class IVT(nn.Module):
    """The tower and its heads. `encode_*` return float32 tokens after the final norm, `embed_*` the embeddings of rows.

    Training passes `keys` (B,) for dropout and stochastic depth: a row's draws follow from its key alone. Without keys
    neither is applied.
    """

    config: IVTConfig

    def setup(self):
        self.image_embedding = ImageEmbedding(self.config)
        self.text_embedding = TextEmbedding(self.config)
        self.blocks = Blocks(self.config)
        self.word_head = WordHead()
        self.patch_head = PatchHead(self.config.patch_size)
        if self.config.projection:
            sizes = self.config.width, self.config.projection
            self.image_projection = self.param("image_projection", init_projection, *sizes)
            self.text_projection = self.param("text_projection", init_projection, *sizes)
            self.similarity = self.param("similarity", init_similarity)

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.dtype)

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Runs both embeddings, the blocks and both heads, so that `init` creates every parameter."""
        images = jnp.zeros((1, *self.config.image_size, 3))
        ids = jnp.zeros((1, 2), jnp.int32)
        patch_mask = jnp.zeros((1, self.config.num_patches), bool)
        image_tokens, text_tokens = self.encode_joint(images, ids, ids == 0, patch_mask=patch_mask)
        return self.word_logits(text_tokens), self.patch_pixels(image_tokens)

    def embed_image(
        self, images: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns the embeddings (B, D) float32, not normalised, of `encode_image`'s arguments."""
        first = self.encode_image(images, keep=keep, keys=keys)[:, 0]
        return project(self.image_projection, first) if self.config.projection else first

    def embed_text(
        self, ids: jax.Array, mask: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns the embeddings (B, D) float32, not normalised, of `encode_text`'s arguments."""
        first = self.encode_text(ids, mask, keep=keep, keys=keys)[:, 0]
        return project(self.text_projection, first) if self.config.projection else first

    def scale(self) -> jax.Array:
        """Returns the learned scale () float32 of similarities, at most 100; only a model with a projection has it."""
        return similarity_scale(self.similarity)

    def encode_image(
        self, images: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """(B, H, W, 3) normalised -> (B, 1 + P, D), or (B, K, D) of the tokens that `keep` selects."""
        tokens, mask = select(self.image_embedding(images, None, self.dtype), None, keep)
        return self.blocks(tokens, mask, tokens.shape[1], keys, self.blocks.bias(image=True, keep=keep))

    def encode_text(
        self, ids: jax.Array, mask: jax.Array, *, keep: Selection | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """ids (B, L) int32, mask (B, L) False at padding, which comes last -> (B, L, D), or (B, K, D) of `keep`."""
        embedding_keys, block_keys = split_keys(keys)
        tokens, kept = select(self.text_embedding(ids, self.dtype, embedding_keys), mask, keep)
        return self.blocks(tokens, kept, 0, block_keys, self.blocks.bias(length=ids.shape[1], keep=keep))

    def encode_joint(
        self,
        images: jax.Array,
        ids: jax.Array,
        mask: jax.Array,
        *,
        patch_mask: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes images and texts as one sequence of tokens -> (B, 1 + P, D) and (B, L, D).

        Attention runs over both; each token goes through its modality's MLP. The mask token replaces the patches where
        `patch_mask` (B, P) is True.
        """
        image = self.image_embedding(images, patch_mask, self.dtype)
        embedding_keys, block_keys = split_keys(keys)
        text = self.text_embedding(ids, self.dtype, embedding_keys)
        num_image = image.shape[1]
        mask = jnp.concatenate([jnp.ones(image.shape[:2], bool), mask], axis=1)
        bias = self.blocks.bias(image=True, length=ids.shape[1])
        tokens = self.blocks(jnp.concatenate([image, text], axis=1), mask, num_image, block_keys, bias)
        return tokens[:, :num_image], tokens[:, num_image:]

    def word_logits(self, tokens: jax.Array) -> jax.Array:
        """(..., D) -> (..., vocab_size) float32."""
        return self.word_head(tokens, self.text_embedding.word, self.dtype)

    def patch_pixels(self, tokens: jax.Array) -> jax.Array:
        """(..., D) -> (..., patch_size * patch_size * 3) float32."""
        return self.patch_head(tokens, self.dtype)
