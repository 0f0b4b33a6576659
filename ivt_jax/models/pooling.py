"""SigLIP's attention pooling: from the tokens of an image to its embedding (Zhai et al. 2022, "Scaling ViTs", 2.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivt_jax.models.blocks import attention_params, cast, mlp, mlp_params
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ops import MASKED, dense, layer_norm, norm_params


class AttentionPooling(nn.Module):
    """A learned query attends to the tokens; of its output x, returns x + MLP(norm(x)). "MAPHead" in big_vision."""

    config: IVTConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
        """Pools tokens (B, N, D) after the final norm to (B, D) float32, computed in `dtype`.

        mask (B, N) is False at padding; None = no padding.
        """
        c = self.config
        probe = self.param("probe", nn.initializers.normal(c.init_std), (1, 1, c.width)).astype(dtype)
        attn = cast(self.param("attn", attention_params, c), dtype)
        norm = self.param("norm", norm_params, c.width)
        layers = cast(self.param("mlp", mlp_params, c), dtype)

        of_query, of_rest = ({k: jnp.split(x, [c.width], axis=-1)[i] for k, x in attn["qkv"].items()} for i in (0, 1))
        batch, count, _ = tokens.shape
        query = dense(of_query, probe).reshape(c.num_heads, -1)
        keys, values = jnp.moveaxis(
            dense(of_rest, tokens.astype(dtype)).reshape(batch, count, 2, c.num_heads, -1), 2, 0
        )
        query = query * query.shape[-1] ** -0.5
        scores = jnp.einsum("hd,bnhd->bhn", query, keys, preferred_element_type=jnp.float32)
        if mask is not None:
            scores = scores + jnp.where(mask, 0.0, MASKED)[:, None]
        mixed = jnp.einsum("bhn,bnhd->bhd", jax.nn.softmax(scores).astype(dtype), values).reshape(batch, -1)
        pooled = dense(attn["proj"], mixed)
        normed = layer_norm(norm, pooled, c.norm_epsilon).astype(dtype)
        return (pooled + mlp(layers, normed, c.image_activation)).astype(jnp.float32)
