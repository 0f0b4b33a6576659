"""Training that starts from given parameters: `train.init_from`, the folder of a run, an export or converted weights.

What has the same shape is loaded; positions and types of another grid of patches are resized; what only training needs
may be missing, and stays as it is initialised. Anything else is an error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.conversion.positions import resize_positions
from ivt_jax.models.ivt import IVTConfig, parameter_shapes
from ivt_jax.run.checkpoint import Restored, restore_params
from ivt_jax.run.workdir import load_record, refuse_other_tokenizer

PER_PATCH = ("image_embedding/pos_embed", "image_embedding/type_embed")
NOT_SHAPES = ("num_heads", "image_norm", "image_activation", "norm_epsilon")  # what shapes do not tell, or not well
MAY_LACK = ("word_head/", "patch_head/", "image_embedding/mask_token")  # of masked reconstruction alone


class Given(NamedTuple):
    """What training starts from: parameters by their path, and one line that tells where they come from."""

    params: Mapping[str, np.ndarray]
    told: str


NOTHING = Given({}, "")


def given_params(config: ConfigDict) -> Given:
    """The parameters that `train.init_from` gives, ready for the config's model; NOTHING where it is empty.

    Raises UserError, naming the parameter, where one does not fit, or is not what the folder's own config describes.
    """
    folder = config.train.init_from
    if not folder:
        return NOTHING
    restored = _restore(folder)
    theirs, ours = (IVTConfig.from_config(c.model) for c in (restored.config, config))
    flat = flatten_dict(restored.params, sep="/")
    actions = compare(folder, {path: value.shape for path, value in flat.items()}, theirs, ours)
    _refuse_other_words(Path(folder), config)
    params = {}
    for path, action in actions.items():
        if action != "initialised":
            value = np.asarray(flat[path], np.float32)
            params[path] = resize_positions(value, theirs.grid, ours.grid) if action == "resized" else value
    return Given(params, _tell(folder, restored.step, actions, theirs, ours))


def plan(config: ConfigDict) -> str:
    """The line that `given_params` would tell, from shapes alone; empty where it gives NOTHING. Raises as it does."""
    folder = config.train.init_from
    if not folder:
        return ""
    restored = _restore(folder, shapes_alone=True)
    theirs, ours = (IVTConfig.from_config(c.model) for c in (restored.config, config))
    shapes = {path: tuple(value.shape) for path, value in flatten_dict(restored.params, sep="/").items()}
    return _tell(folder, restored.step, compare(folder, shapes, theirs, ours), theirs, ours)


def compare(folder: str, found: Mapping[str, tuple[int, ...]], theirs: IVTConfig, ours: IVTConfig) -> dict[str, str]:
    """Path of every parameter of the model `ours` -> "loaded", "resized" or "initialised".

    found: the shapes that the folder has: all those of the model `theirs`, but for what may lack. Raises UserError for
    what fits nowhere.
    """
    other = [name for name in NOT_SHAPES if getattr(theirs, name) != getattr(ours, name)]
    if other:
        flags = " ".join(f"--config.model.{name}={getattr(theirs, name)}" for name in other)
        raise UserError(f"train.init_from: {folder} is of a model with another {', '.join(other)}; set {flags}")
    actions = {}
    for path, shape in parameter_shapes(ours).items():
        if found.get(path) == shape and (path not in PER_PATCH or theirs.grid == ours.grid):
            actions[path] = "loaded"
        elif path not in found:
            actions[path] = "initialised"
        elif path in PER_PATCH and found[path][-1] == shape[-1]:
            actions[path] = "resized"
        else:
            raise UserError(f"train.init_from: {path} of {folder} has shape {found[path]}, the config wants {shape}")
    return actions


def _restore(folder: str, shapes_alone: bool = False) -> Restored:
    try:
        return restore_params(Path(folder), shapes_alone=shapes_alone, may_lack=MAY_LACK)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from None


def _refuse_other_words(folder: Path, config: ConfigDict) -> None:
    """Raises UserError where the words of the folder's parameters have other ids than the config's tokenizer gives."""
    if "tokenizer" in load_record(folder):
        tokenizer = load_tokenizer(config.text.tokenizer, config.model.vocab_size)
        place = f'text.tokenizer="{config.text.tokenizer}"'
        refuse_other_tokenizer(folder, tokenizer, place, "name the first with --config.text.tokenizer")


def _tell(folder: str, step: int, actions: Mapping[str, str], theirs: IVTConfig, ours: IVTConfig) -> str:
    names: dict[str, list[str]] = {"loaded": [], "resized": [], "initialised": []}
    for path, action in actions.items():
        names[action].append(path)
    line = f"parameters from {folder}, step {step}: {len(names['loaded'])} loaded"
    if names["resized"]:
        grids = " -> ".join("{}x{}".format(*model.grid) for model in (theirs, ours))
        line += f"; resized {grids}: {', '.join(names['resized'])}"
    if names["initialised"]:
        line += f"; initialised: {', '.join(names['initialised'])}"
    return line
