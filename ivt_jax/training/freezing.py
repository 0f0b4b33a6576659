"""Which parameters are trained (train.freeze), and by which factor of the learning rate (optimizer.multipliers).

Patterns are regular expressions, searched for in a parameter's path, such as "blocks/attn/qkv/kernel". The blocks of a
tower are stacked: a path covers all of them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from ivt_jax.common.errors import UserError
from ivt_jax.losses.heads import HEADS
from ivt_jax.training.sharding import path_name


def split_params(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """Returns the trained and the frozen part of a tree of parameters, or of anything that has a leaf for each."""
    if not patterns:
        return params, {}
    flat = flatten_dict(params, sep="/")
    frozen = {path: leaf for path, leaf in flat.items() if is_frozen(path, patterns)}
    trained = {path: leaf for path, leaf in flat.items() if path not in frozen}
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join_params(trained: Any, frozen: Any) -> Any:
    """Undoes `split_params`."""
    if not frozen:
        return trained
    return unflatten_dict({**flatten_dict(trained, sep="/"), **flatten_dict(frozen, sep="/")}, sep="/")


def is_frozen(path: str, patterns: Iterable[str]) -> bool:
    """Returns whether a pattern of train.freeze matches the parameter with this path."""
    return any(re.search(pattern, path) for pattern in patterns)


def parse_multiplier(entry: str) -> tuple[str, float]:
    """Returns pattern and factor of an entry of optimizer.multipliers, "PATTERN=FACTOR". Raises ValueError."""
    pattern, equals, factor = entry.rpartition("=")
    if not (pattern and equals):
        raise ValueError(entry)
    return pattern, float(factor)


def factor_of(path: str, multipliers: Iterable[str]) -> float:
    """Returns the factor of a parameter's learning rate: that of the first pattern that matches its path, else 1."""
    pairs = map(parse_multiplier, multipliers)
    return next((factor for pattern, factor in pairs if re.search(pattern, path)), 1.0)


def scale_updates(updates: Any, multipliers: Sequence[str]) -> Any:
    """Returns the updates, each multiplied by the factor of its parameter."""

    def scale(path: Any, update: Any) -> Any:
        return update * factor_of(path_name(path), multipliers)

    return jax.tree_util.tree_map_with_path(scale, updates)


def refuse_patterns(paths: Iterable[str], config: Any) -> None:
    """Raises UserError for a pattern that matches none of the parameters, or if all parameters are frozen.

    A pattern for a head (losses/heads.py) is accepted without it, so that a recipe still works with id.weight 0.
    """
    paths, freeze = list(paths), config.train.freeze
    entries = {f'train.freeze: "{pattern}"': pattern for pattern in freeze}
    entries |= {f'optimizer.multipliers: "{x}"': parse_multiplier(x)[0] for x in config.optimizer.multipliers}
    for entry, pattern in entries.items():
        of_head = any(head in pattern for head in HEADS)
        if not of_head and not any(re.search(pattern, path) for path in paths):
            raise UserError(f"{entry} matches no parameter; --dry_run without it lists the paths")
    if all(is_frozen(path, freeze) for path in paths):
        raise UserError(f"train.freeze {tuple(freeze)} leaves no parameter to train; remove a pattern")


def rate_notes(paths: Iterable[str], config: Any) -> Mapping[str, str]:
    """Returns for each path "frozen", "x FACTOR", or ""; {} if the config has neither patterns nor multipliers."""
    freeze, multipliers = config.train.freeze, config.optimizer.multipliers
    if not (freeze or multipliers):
        return {}

    def note(path: str) -> str:
        if is_frozen(path, freeze):
            return "frozen"
        factor = factor_of(path, multipliers)
        return f"x {factor:g}" if factor != 1 else ""

    return {path: note(path) for path in paths}
