"""Image size, stride and text lengths that a model was taught with, read off the shapes of its positions."""

import math
from collections.abc import Mapping
from typing import Any

from ivt_jax.conversion import clip, siglip, vlmo
from ivt_jax.conversion.tensors import Naming
from ivt_jax.conversion.towers import TowerNamings
from ivt_jax.conversion.vit import POSITIONS, Source

TOWERS: Mapping[str, Mapping[str, TowerNamings]] = {"clip": clip.TOWERS, "siglip": siglip.TOWERS}


def taught(source: str, weights: Source, longest: int) -> dict[str, Any]:
    """Returns the square image, the stride and the patches of weights, as key of the config -> value; two towers also
    the lengths of texts.

    source: clip, siglip or vlmo. longest: the text in tokens for which VLMo's relative positions were made. Returns {}
    if the tensors have other names or do not fit: the conversion then names the fault.
    """
    if source == "vlmo":
        naming = Naming(vlmo.RULES, {}, vlmo.clean)
        table, kernel = (_shape(naming, path, weights) for path in (vlmo.RELATIVE, clip.KERNEL))
        return _geometry(vlmo.side_of(table[0], longest), kernel) if table and kernel else {}
    for namings in TOWERS[source].values():
        positions, kernel = (_shape(namings.image, path, weights) for path in (POSITIONS, clip.KERNEL))
        places = _shape(namings.text, clip.PLACES, weights)
        if positions and kernel and places:
            count = positions[0] - (source == "clip")  # [CLS]
            lengths = {f"text.length.{level}": places[0] for level in ("sentence", "phrase", "word")}
            side = math.isqrt(max(count, 0))
            return _geometry(side if side**2 == count else 0, kernel) | lengths
    return {}


def _shape(naming: Naming, path: str, weights: Source) -> tuple[int, ...]:
    """Returns the shape of the tensor from which a parameter is made, () if there is none."""
    name = next(rule.names[0] for rule in naming.rules if rule.ours == path)
    return next((tensor.shape for own, tensor in weights.tensors.items() if naming.clean(own) == name), ())


def _geometry(side: int, kernel: tuple[int, ...]) -> dict[str, Any]:
    """Returns the keys for a grid of `side` patches each way; {} if it is 0. kernel: (D, 3, P, P)."""
    patch, size = kernel[-1], side * kernel[-1]
    return {"model.image_size": (size, size), "model.stride": patch, "model.patch_size": patch} if side else {}
