"""Initial parameters of a training: `train.init_from`, the folder of a run, an export or converted weights.

Parameters of equal shape are loaded. Positions and types of another grid of patches are resized. Parameters that only
training needs, relative position biases and projections may be missing and stay as initialised. The heads of the other
run's losses (losses/heads.py) are dropped; those of the new run begin anew. Anything else is an error.
"""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from input_pipeline.annotations import dataset_name
from input_pipeline.datasets import title_of_data
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import UserError
from ivt_jax.conversion.positions import resize_offsets, resize_positions
from ivt_jax.losses.heads import heads_of
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.checkpoint import holds_params_alone, restore_params
from ivt_jax.run.workdir import load_record, refuse_other_tokenizer, with_later_keys

PER_PATCH = ("image_embedding/pos_embed", "image_embedding/type_embed")
PER_OFFSET = "blocks/relative/image"
# Settings that must be equal, because shapes do not show all differences. Those of the text tower count only in models
# with two towers.
SETTINGS = (
    "towers", "num_heads", "image_norm", "image_activation", "norm_epsilon", "pixel_mean", "pixel_deviation", "pooling"
)  # fmt: skip
TEXT_SETTINGS = ("text.num_heads", "text.activation", "text.causal", "text.pooling", "text.projection_bias")
# These decide shapes, besides those of the patches' grid, to which parameters are resized.
SIZES = ("patch_size", "width", "depth", "mlp_ratio", "vocab_size", "max_text_length")
TEXT_SIZES = ("text.width", "text.depth", "text.mlp_ratio")
ADDED = ("relative_positions", "projection")  # the new model may add these, but not drop them
OPTIONAL = ("word_head/", "patch_head/", "image_embedding/mask_token")  # only masked reconstruction needs them


class Initial(NamedTuple):
    """Initial parameters by path, as float32, a line that says where they come from, and their origin.

    origin: for config.json, as `origin_of` returns it; {} without a folder.
    """

    params: Mapping[str, np.ndarray]
    summary: str
    origin: Mapping[str, Any]


NOTHING = Initial({}, "", {})
RECORDED = ("weights", "start", "annotations", "model")  # of config.json: where its parameters come from


def initial_params(config: ConfigDict, shapes_alone: bool = False) -> Initial:
    """Returns the parameters of `train.init_from`, fitted to the config's model; NOTHING if it is empty.

    shapes_alone: reads shapes and returns the summary without parameters. Raises UserError, naming the parameter, if
    one does not fit or is not as the folder's own config describes.
    """
    folder = config.train.init_from
    if not folder:
        return NOTHING
    if not Path(folder).exists():
        raise UserError(f"train.init_from: {folder} not found; convert weights into it first, see docs/weights.md")
    try:
        restored = restore_params(folder, shapes_alone=shapes_alone, optional=OPTIONAL)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from None
    old, new = (IVTConfig.from_config(c.model) for c in (restored.config, config))
    found = flatten_dict(restored.params, sep="/")
    actions = choose_actions(folder, {path: tuple(value.shape) for path, value in found.items()}, old, new)
    params = {}
    if not shapes_alone:
        if "tokenizer" in load_record(folder):
            clean = restored.config.text.get("clean", "")  # marks of a text may be read otherwise now, its pieces not
            tokenizer = load_tokenizer(config.text.tokenizer, config.model.vocab_size, clean)
            place = f'text.tokenizer="{config.text.tokenizer}"'
            refuse_other_tokenizer(Path(folder), tokenizer, place, "set --config.text.tokenizer to the first one")
        for path, action in actions.items():
            if action != "initialised":
                value = np.asarray(found[path], np.float32)
                params[path] = resize(path, value, old, new) if action == "resized" else value
    dropped = [] if holds_params_alone(Path(folder)) else heads_of(with_later_keys(restored.config, config))
    summary = _summary(f"{folder}, step {restored.step}", actions, old, new)
    summary += f"; dropped the heads of its losses: {', '.join(dropped)}" if dropped else ""
    return Initial(params, summary, origin_of(folder, restored.step))


def origin_of(folder: str, step: int) -> dict[str, Any]:
    """Returns where the parameters of a folder come from, as its config.json records it: at export it may be gone.

    "weights" has the files or the repository that were converted, "start" the same of the folder that a run itself
    started from, "data" and "annotations" what it was trained on.
    """
    record = load_record(folder)
    origin = {"folder": folder, "step": step} | {key: record[key] for key in RECORDED if key in record}
    if "annotations" not in record:
        return origin
    data = record["config"]["data"]
    return origin | {"data": title_of_data(data) if data.get("sources") else dataset_name(data)}


def choose_actions(folder: str, found: Mapping[str, tuple[int, ...]], old: IVTConfig, new: IVTConfig) -> dict[str, str]:
    """Returns "loaded", "resized" or "initialised" for the path of every parameter of the model `new`.

    found: the shapes in the folder, those of the model `old`. Raises UserError for a shape that does not fit.
    """
    both = old.towers == new.towers == 2
    settings, sizes = SETTINGS + both * TEXT_SETTINGS, SIZES + both * TEXT_SIZES
    of = {name: operator.attrgetter(name) for name in settings + sizes + ADDED}
    other = [name for name in settings if of[name](old) != of[name](new)]
    other += [name for name in ADDED if of[name](old) and of[name](old) != of[name](new)]
    sized = [name for name in sizes if of[name](old) != of[name](new)]
    flags = " ".join(f"--config.model.{name}={_flag_value(of[name](old))}" for name in other + sized)
    if other:
        names = ", ".join(other + sized)
        raise UserError(f"train.init_from: {folder} is of a model with another {names}; set {flags}")
    actions = {}
    for path, shape in parameter_shapes(new).items():
        per_patch = path in PER_PATCH or path == PER_OFFSET
        rest = slice(0, 2) if path == PER_OFFSET else slice(-1, None)  # the axes that do not depend on the grid
        if found.get(path) == shape and (not per_patch or old.grid == new.grid):
            actions[path] = "loaded"
        elif path not in found:
            actions[path] = "initialised"
        elif per_patch and found[path][rest] == shape[rest]:
            actions[path] = "resized"
        else:
            fault = f"{path} of {folder} has shape {found[path]}, the config needs {shape}"
            raise UserError(f"train.init_from: {fault}" + (f"; set {flags}" if flags else ""))
    return actions


def resize(path: str, value: np.ndarray, old: IVTConfig, new: IVTConfig) -> np.ndarray:
    """Returns a parameter of the old grid of patches for the new one."""
    if path == PER_OFFSET:
        return resize_offsets(value, old.grid, new.grid, new.stride / old.stride)
    return resize_positions(value, old.grid, new.grid)


def _flag_value(value: Any) -> str:
    """Returns a value of the config as a shell takes it."""
    return '"({})"'.format(",".join(map(str, value))) if isinstance(value, tuple) else str(value)


def _summary(source: str, actions: Mapping[str, str], old: IVTConfig, new: IVTConfig) -> str:
    loaded, resized, initialised = (
        [path for path, action in actions.items() if action == name] for name in ("loaded", "resized", "initialised")
    )
    line = f"parameters from {source}: {len(loaded)} loaded"
    if resized:
        line += f"; resized {'{}x{}'.format(*old.grid)} -> {'{}x{}'.format(*new.grid)}: {', '.join(resized)}"
    return line + (f"; initialised: {', '.join(initialised)}" if initialised else "")
