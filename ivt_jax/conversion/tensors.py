"""Reads the tensors of a file into parameters, by a table of rules.

Nothing is guessed. A missing tensor, an unexpected one, or one of another shape is an error that names it. A letter in
the shape of a rule stands for the same number everywhere; the numbers are read off the tensors.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.files import FLOATS, other_dtype

Sizes = Mapping[str, int]
Flat = dict[str, np.ndarray]  # parameters by path, as "blocks/attn/qkv/kernel"; those of blocks have a leading axis


class Rule(NamedTuple):
    """How one parameter is made from the tensors of a file."""

    ours: str  # path of the parameter
    names: tuple[str, ...]  # of the tensors; {} is the number of the block
    shape: tuple[str, ...]  # of each tensor, such as ("3D", "D")
    layout: Callable[..., np.ndarray]  # tensors -> parameter (of one block)


class TensorUse(NamedTuple):
    """What became of a tensor, or where a parameter comes from."""

    action: str  # used, resized, initialised or ignored
    name: str  # of the tensor in the file; "" for an initialised parameter
    shape: tuple[int, ...]
    note: str  # the parameter, or why the tensor is ignored


class Naming(NamedTuple):
    """The names that a source of weights gives to its tensors."""

    rules: tuple[Rule, ...]
    ignored: Mapping[str, str]  # pattern of the whole name -> why the tensor is ignored
    clean: Callable[[str], str] = str  # name in the file -> name in the rules


class Loaded(NamedTuple):
    """Parameters read from a file, the size for each letter in the rules' shapes and for "depth", and the uses."""

    flat: Flat
    sizes: dict[str, int]
    uses: list[TensorUse]


def same(tensor: np.ndarray) -> np.ndarray:
    """Returns the tensor unchanged: the layout of a parameter that needs no conversion."""
    return tensor


def rule(ours: str, names: str, shape: str, layout: Callable[..., np.ndarray] = same) -> Rule:
    """Returns a rule; `names` and `shape` are separated by spaces."""
    return Rule(ours, tuple(names.split()), tuple(shape.split()), layout)


def shapes(naming: Naming, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every tensor that a model of these sizes has."""
    return {
        name: tuple(int(_number(part, sizes)) for part in rule.shape)
        for rule in naming.rules
        for names in _names(rule, sizes["depth"])
        for name in names
    }


def read(naming: Naming, tensors: Mapping[str, np.ndarray], file: str, known: Sizes) -> Loaded:
    """Returns the parameters that the rules make of a file's tensors.

    known: sizes by letter that the tensors do not determine. Raises UserError, naming file and tensor, if a tensor
    is missing, unexpected, empty, of another shape, or of a dtype outside `files.FLOATS`.
    """
    own = _clean_names(naming, tensors, file)
    depth = _depth(naming.rules, own)
    sources = [(rule, _names(rule, depth)) for rule in naming.rules]
    wanted = {name: rule for rule, blocks in sources for names in blocks for name in names}
    for name in wanted:
        if name not in own:
            raise UserError(f'{file}: tensor "{name}" is missing')
    ignored = _ignored(naming, {name: own[name] for name in own if name not in wanted}, tensors, file)
    found = {name: tensors[own[name]] for name in wanted}
    for name, tensor in found.items():
        if tensor.dtype.name not in FLOATS:
            raise other_dtype(file, own[name], tensor.dtype)
        if not tensor.size:
            raise UserError(f'{file}: tensor "{own[name]}" is empty, of shape {tensor.shape}; fetch the file again')
    sizes = {**_sizes(wanted, found), **known}
    for name, rule in wanted.items():
        expected = tuple(_number(part, sizes) for part in rule.shape)
        if found[name].shape != expected:
            shown = ", ".join(map(str, expected))
            raise UserError(f'{file}: tensor "{own[name]}" has shape {found[name].shape}, expected ({shown})')
    flat = {}
    for rule, blocks in sources:
        made = [rule.layout(*(found[name] for name in names)) for names in blocks]
        flat[rule.ours] = np.stack(made) if "{}" in rule.names[0] else made[0]
    used = [TensorUse("used", own[name], found[name].shape, rule.ours) for name, rule in wanted.items()]
    return Loaded(flat, {**sizes, "depth": depth}, used + ignored)


def _clean_names(naming: Naming, tensors: Iterable[str], file: str) -> dict[str, str]:
    """Returns name in the rules -> name in the file."""
    own: dict[str, str] = {}
    for name in tensors:
        clean = naming.clean(name)
        if clean in own:
            raise UserError(f'{file}: tensors "{own[clean]}" and "{name}" are both "{clean}"; keep one of them')
        own[clean] = name
    return own


def _names(rule: Rule, depth: int) -> list[list[str]]:
    """Returns the names of the rule's tensors in each block; a single list if the rule is not of a block."""
    count = depth if "{}" in rule.names[0] else 1
    return [[name.replace("{}", str(block)) for name in rule.names] for block in range(count)]


def _depth(rules: Iterable[Rule], names: Iterable[str]) -> int:
    """Returns how many different block numbers the names have, at least 1."""
    patterns = [re.escape(name).replace(r"\{\}", r"(\d+)") for rule in rules for name in rule.names if "{}" in name]
    pattern = re.compile("|".join(patterns))
    found = [pattern.fullmatch(name) for name in names]
    return max(1, len({next(filter(None, match.groups())) for match in found if match}))


def _ignored(naming: Naming, left: dict[str, str], tensors: Mapping[str, np.ndarray], file: str) -> list[TensorUse]:
    """Returns the use of tensors that no rule reads. Raises UserError if the naming does not list one as ignored."""
    uses = []
    for clean, name in left.items():
        why = next((why for pattern, why in naming.ignored.items() if re.fullmatch(pattern, clean)), None)
        if why is None:
            raise UserError(f'{file}: unexpected tensor "{name}" of shape {tensors[name].shape}')
        uses.append(TensorUse("ignored", name, tensors[name].shape, why))
    return uses


def _sizes(wanted: Mapping[str, Rule], found: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the size for each letter, by majority: an error then names the tensor that differs from the others."""
    votes: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for name, rule in wanted.items():
        if len(rule.shape) == found[name].ndim:
            for letter, size in zip(rule.shape, found[name].shape, strict=True):
                votes[letter][size] += 1
    return {letter: counts.most_common(1)[0][0] for letter, counts in votes.items() if letter.isalpha()}


def _number(part: str, sizes: Sizes) -> int | str:
    """Returns the number of "D", "3D" or "3"; an unknown letter stays as it is."""
    times, letter = re.fullmatch(r"(\d*)([A-Za-z]*)", part).groups()  # type: ignore[union-attr]
    if not letter:
        return int(times)
    return int(times or 1) * sizes[letter] if letter in sizes else part


def table(uses: Iterable[TensorUse]) -> str:
    """Returns the uses as text; tensors that differ only in the number of their block share a line."""
    counts = Counter(use._replace(name=re.sub(r"(?<=[._])\d+(?=[./])", "*", use.name, count=1)) for use in uses)
    lines = [("", "tensors", "name", "shape", "")]
    for use, count in counts.items():
        shape = "x".join(map(str, use.shape)) or "scalar"
        lines.append((use.action, str(count) if use.name else "", use.name, shape, use.note))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        f"{action:{widths[0]}}  {count:>{widths[1]}}  {name:{widths[2]}}  {shape:{widths[3]}}  {note}".rstrip()
        for action, count, name, shape, note in lines
    )
