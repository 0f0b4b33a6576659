"""The sizes and options of a model, one tower or two; needs no JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ivt_jax.models.patches import num_patches, patch_grid


def hidden_units(width: int, mlp_ratio: float) -> int:
    """Returns the units of an MLP: those that the ratio was computed from, if it is units / width."""
    return int(width * mlp_ratio + 1e-6)  # in floating point, 448 * (976 / 448) is below 976


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower of a model with two towers; the defaults have the sizes of CLIP's ViT-B/16.

    activation: of its MLPs. causal: a token attends only to itself and to earlier ones. pooling: "first", "end" or
    "last", the token whose output is the embedding (`selection.pooled_places`). projection_bias: the projection of
    texts has a bias, as in SigLIP.
    """

    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    causal: bool = False
    pooling: str = "first"
    projection_bias: bool = False


@dataclasses.dataclass(frozen=True)
class IVTConfig:
    """Sizes and options of a model; the defaults are the paper's ViT-B/16 at 384x128.

    init_std: standard deviation of the initial linear layers, class token and positions. A narrow tower needs a larger
    one.
    image_norm: a layer norm on the image tokens before the blocks, as in CLIP. image_activation: of `mlp_vis`; CLIP has
    "quick_gelu". norm_epsilon: of that norm and of the blocks; CLIP has 1e-5. Text embedding and heads have their own.
    unroll: compile every block by itself instead of one loop over them. remat: recompute cheap activations.
    attention: "xla", or "cudnn" for cuDNN's kernel on a GPU.
    pixel_mean, pixel_deviation: mean and standard deviation of red, green and blue, for pixels scaled to 0..1; images
    are normalised with them.
    relative_positions: relative position biases on attention scores, as in VLMo. projection: width of the embeddings
    after a linear layer for each modality; 0 = no such layer, and the width of the tokens.
    towers: 1 for both modalities, or 2: one for images, with the sizes here, and one for texts, with those of `text`.
    pooling: of images: "class", the class token, or, with two towers, "attention", SigLIP's attention pooling.
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
    relative_positions: bool = False
    projection: int = 0
    towers: int = 1
    pooling: str = "class"
    text: TextConfig = TextConfig()

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> "IVTConfig":
        """Returns the sizes of a run from its `config.model`."""
        # config.json has lists instead of tuples.
        values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in dict(section).items()}
        if "text" in values:
            values["text"] = TextConfig(**dict(values["text"]))
        return cls(**values)

    @property
    def embedding_width(self) -> int:
        """Dimension of an embedding."""
        return self.projection or self.width

    @property
    def hidden(self) -> int:
        """Units of an MLP."""
        return hidden_units(self.width, self.mlp_ratio)

    @property
    def text_tower(self) -> "IVTConfig":
        """The sizes and options of the text tower, in a model with two."""
        t = self.text
        return dataclasses.replace(
            self, width=t.width, depth=t.depth, num_heads=t.num_heads, mlp_ratio=t.mlp_ratio,
            image_activation=t.activation,
        )  # fmt: skip

    @property
    def has_class_token(self) -> bool:
        """Whether the class token comes before an image's patches."""
        return self.pooling == "class"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.image_size, self.patch_size, self.stride)

    @property
    def num_patches(self) -> int:
        return num_patches(self.image_size, self.patch_size, self.stride)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image: patches, and the class token if there is one."""
        return self.num_patches + self.has_class_token
