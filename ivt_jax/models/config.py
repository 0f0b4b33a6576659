"""The sizes and options of a tower; needs no JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ivt_jax.models.patches import num_patches, patch_grid


@dataclasses.dataclass(frozen=True)
class IVTConfig:
    """Sizes of the tower; the defaults are the paper's ViT-B/16 at 384x128.

    init_std: deviation of the initial linear layers, class token and positions. A narrow tower needs a larger one.
    image_norm: a layer norm on the image tokens before the blocks, as in CLIP. image_activation: of `mlp_vis`; CLIP has
    "quick_gelu". norm_epsilon: of that norm and of the blocks; CLIP has 1e-5. Text embedding and heads have their own.
    unroll: compile every block by itself instead of one loop over them. remat: recompute cheap activations.
    attention: "xla", or "cudnn" for cuDNN's kernel on a GPU.
    pixel_mean, pixel_deviation: of red, green and blue from 0 to 1, by which images are normalised.
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
    norm_epsilon: float = 1e-6
    attention: str = "xla"
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_deviation: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> "IVTConfig":
        """Returns the sizes of a run from its `config.model`."""
        # config.json has lists instead of tuples.
        values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in section.items()}
        return cls(**values)

    @property
    def embedding_width(self) -> int:
        """Numbers of an embedding."""
        return self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.image_size, self.patch_size, self.stride)

    @property
    def num_patches(self) -> int:
        return num_patches(self.image_size, self.patch_size, self.stride)
