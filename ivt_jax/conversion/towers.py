"""Weights of two towers in one file, CLIP's or SigLIP's: each tower is read by a naming of its own."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.model import Conversion, filled
from ivt_jax.conversion.tensors import Loaded, Naming, read
from ivt_jax.conversion.vit import Source, naming_of, resized
from ivt_jax.models.config import IVTConfig

# Number of heads by width in the published towers: 64 channels per head. Other widths, such as 1152 with 16 heads, do
# not follow this rule.
HEADS = {512: 8, 768: 12, 1024: 16}
SCALARS = ("logit_scale", "logit_bias")  # some programs store them as (1,), others as ()


class TowerNamings(NamedTuple):
    """The tensor names of an image tower, with the scale of similarities, and of a text tower."""

    image: Naming
    text: Naming
    of_text: str  # regular expression for the full names of the text tower's tensors, before `text.clean`


def read_towers(source: Source, namings: Mapping[str, TowerNamings], kind: str) -> tuple[Loaded, Loaded]:
    """Returns the image side and the text side of a file. Raises UserError as `naming_of` and `tensors.read`."""
    names = namings[naming_of(source, {name: naming.image for name, naming in namings.items()}, kind)]
    tensors = {name: x.reshape(1) if _is_scalar(name, x) else x for name, x in source.tensors.items()}
    texts = {name for name in tensors if re.fullmatch(names.of_text, name.removeprefix("module."))}
    image = read(names.image, {name: tensors[name] for name in tensors if name not in texts}, source.file, {})
    return image, read(names.text, {name: tensors[name] for name in tensors if name in texts}, source.file, {})


def _is_scalar(name: str, tensor: np.ndarray) -> bool:
    return name.removeprefix("module.") in SCALARS and tensor.size == 1


def scalar(tensor: np.ndarray) -> np.ndarray:
    """(1,) -> ()."""
    return tensor.reshape(())


def complete_towers(
    image: Loaded, text: Loaded, projection: int, model_config: IVTConfig, file: str, method: str, seed: int
) -> Conversion:
    """Returns the model with the two towers of `file`; positions are resized to its grid of patches by `method`.

    projection: width of the embeddings. model_config: image size and options of both towers; the other sizes are read
    off the tensors. The number of heads is the config's if its width is that of the tensors, otherwise that of a
    published tower (HEADS). Patches overlap only if the config's do. Raises UserError if a size does not fit.
    """
    c, sizes, words = model_config, image.sizes, text.sizes
    towers: dict[str, Any] = {
        "width": sizes["D"], "depth": sizes["depth"], "mlp_ratio": sizes["F"] / sizes["D"], "patch_size": sizes["P"],
        "num_heads": heads(sizes["D"], c.width, c.num_heads, file, "model"),
        "stride": sizes["P"] if c.stride == c.patch_size else c.stride,
        "vocab_size": words["V"], "max_text_length": words["L"], "towers": 2, "projection": projection,
    }  # fmt: skip
    of_text = dataclasses.replace(
        c.text, width=words["D"], depth=words["depth"], mlp_ratio=words["F"] / words["D"],
        num_heads=heads(words["D"], c.text.width, c.text.num_heads, file, "model.text"),
    )  # fmt: skip
    made = dataclasses.replace(c, **towers, text=of_text)
    image = resized(image, file, made, method)
    return filled(image.flat | text.flat, image.uses + text.uses, made, seed)


def heads(width: int, given_width: int, given: int, file: str, section: str) -> int:
    """Returns the number of heads of a tower. Raises UserError if neither the config nor HEADS has it."""
    if width == given_width and width % given == 0:
        return given
    if width == given_width or width not in HEADS:
        raise UserError(
            f"{file}: a tower is {width} wide; set --config.{section}.width={width} and with it "
            f"--config.{section}.num_heads, a divisor that cannot be read off the weights"
        )
    return HEADS[width]
