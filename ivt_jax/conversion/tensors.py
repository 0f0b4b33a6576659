"""Which tensors of a file make which parameter: tables of rules, and one function that follows them to the letter.

Nothing is guessed. A tensor that a rule wants and the file lacks, one that no rule wants and no list leaves out, or one
of another shape is an error that names it. Sizes are read off the tensors: a letter in the shape of a rule stands for
the same number wherever it appears.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.files import FLOATS, other_dtype

Sizes = Mapping[str, int]
Flat = dict[str, np.ndarray]
"""Parameters by their path, such as "blocks/attn/qkv/kernel"; those of the blocks stacked along a leading axis."""


class Rule(NamedTuple):
    """How one parameter of ours is made.

    ours: its path. names: the tensors it is made of, {} being the number of the block. shape: the shape of each of
    them, in letters and numbers. read: from the tensors to the parameter (of one block).
    """

    ours: str
    names: tuple[str, ...]
    shape: tuple[str, ...]
    read: Callable[..., np.ndarray]


class Row(NamedTuple):
    """What became of a tensor, or where a parameter comes from: a line of the account."""

    action: str  # used, resized, initialised or ignored
    name: str  # of the tensor, as the file has it; "" where the parameter comes from none
    shape: tuple[int, ...]
    note: str  # the parameter, or why the tensor is not used


class Naming(NamedTuple):
    """A way to name the tensors of a model.

    ignored: pattern of whole names -> why they are not used; those alone may be left over. clean: the file's own name
    -> the name that the rules have.
    """

    rules: tuple[Rule, ...]
    ignored: Mapping[str, str]
    clean: Callable[[str], str] = str


class Read(NamedTuple):
    """What a file gives: parameters, the sizes behind the letters, with "depth" the blocks, and the account."""

    flat: Flat
    sizes: dict[str, int]
    rows: list[Row]


def rule(ours: str, names: str, shape: str, read: Callable[..., np.ndarray] | None = None) -> Rule:
    """`names` and `shape` separated by spaces; without `read` the tensor is taken as it is."""
    return Rule(ours, tuple(names.split()), tuple(shape.split()), read or same)


def shapes(naming: Naming, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the rules want, of a model with these sizes."""
    return {
        name: tuple(int(_number(part, sizes)) for part in rule.shape)
        for rule in naming.rules
        for layer in _layers(rule, sizes["depth"])
        for name in _numbered(rule, layer)
    }


# ---- layouts: tensors -> parameter


def same(tensor: np.ndarray) -> np.ndarray:
    """As it is."""
    return tensor


def linear(*weights: np.ndarray) -> np.ndarray:
    """PyTorch's (out, in) -> (in, out); several are joined along out."""
    return np.concatenate(weights).T


def joined(*biases: np.ndarray) -> np.ndarray:
    """Biases of linear layers that become one."""
    return np.concatenate([bias.reshape(-1) for bias in biases])


def convolution(weight: np.ndarray) -> np.ndarray:
    """PyTorch's (out, channel, row, column) -> (row * column * channel, out), the order of `extract_patches`."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


# ---- following the rules


def read(naming: Naming, tensors: Mapping[str, np.ndarray], file: str, known: Sizes) -> Read:
    """The parameters that the rules make of a file's tensors, none of which may be left over.

    known: letters whose number is given from outside. Raises UserError, naming file and tensor, where one is missing,
    unexpected, empty, of another shape, or of a dtype that is not in `files.FLOATS`.
    """
    own = _clean_names(naming, tensors, file)
    depth = _depth(naming.rules, own)
    sources = [(rule, [_numbered(rule, layer) for layer in _layers(rule, depth)]) for rule in naming.rules]
    wanted = {name: rule for rule, layers in sources for names in layers for name in names}
    for name in wanted:
        if name not in own:
            raise UserError(f'{file}: tensor "{name}" is missing')
    rows = _leave_out(naming, {name: own[name] for name in own if name not in wanted}, tensors, file)
    shapes = {name: tensors[own[name]].shape for name in wanted}
    for name in wanted:
        if (dtype := tensors[own[name]].dtype).name not in FLOATS:
            raise other_dtype(file, own[name], dtype)
        if 0 in shapes[name]:
            raise UserError(f'{file}: tensor "{own[name]}" is empty, of shape {shapes[name]}; fetch the file again')
    sizes = {**_sizes(wanted, shapes), **known}
    for name, rule in wanted.items():
        expected = tuple(_number(part, sizes) for part in rule.shape)
        if shapes[name] != expected:
            shown = ", ".join(map(str, expected))
            raise UserError(f'{file}: tensor "{own[name]}" has shape {shapes[name]}, expected ({shown})')
    flat = {}
    for rule, layers in sources:
        made = [rule.read(*(tensors[own[name]] for name in names)) for names in layers]
        flat[rule.ours] = np.stack(made) if _per_block(rule) else made[0]
    used = [Row("used", own[name], shapes[name], rule.ours) for name, rule in wanted.items()]
    return Read(flat, {**sizes, "depth": depth}, used + rows)


def _clean_names(naming: Naming, tensors: Iterable[str], file: str) -> dict[str, str]:
    """The rules' name -> the file's name."""
    own: dict[str, str] = {}
    for name in tensors:
        clean = naming.clean(name)
        if clean in own:
            raise UserError(f'{file}: tensors "{own[clean]}" and "{name}" are two of the same kind')
        own[clean] = name
    return own


def _per_block(rule: Rule) -> bool:
    return "{}" in rule.names[0]


def _layers(rule: Rule, depth: int) -> Sequence[int]:
    return range(depth) if _per_block(rule) else (0,)


def _numbered(rule: Rule, layer: int) -> list[str]:
    return [name.replace("{}", str(layer)) for name in rule.names]


def _depth(rules: Iterable[Rule], names: Iterable[str]) -> int:
    """The number of blocks, at least one: how many numbers the tensors' names have."""
    patterns = [re.escape(name).replace(r"\{\}", r"(\d+)") for rule in rules for name in rule.names if "{}" in name]
    pattern = re.compile("|".join(patterns))
    found = [pattern.fullmatch(name) for name in names]
    return max(1, len({next(filter(None, match.groups())) for match in found if match}))


def _leave_out(naming: Naming, left: dict[str, str], tensors: Mapping[str, np.ndarray], file: str) -> list[Row]:
    """Rows of the tensors that the naming's list lets be left over; any other is an error."""
    rows = []
    for clean, name in left.items():
        why = next((why for pattern, why in naming.ignored.items() if re.fullmatch(pattern, clean)), None)
        if why is None:
            raise UserError(f'{file}: unexpected tensor "{name}" of shape {tensors[name].shape}')
        rows.append(Row("ignored", name, tensors[name].shape, why))
    return rows


def _sizes(wanted: Mapping[str, Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The number behind each letter: what most tensors say, so that the one that differs is the one at fault."""
    votes: dict[str, Counter[int]] = {}
    for name, rule in wanted.items():
        if len(shapes[name]) == len(rule.shape):
            for letter, size in zip(rule.shape, shapes[name], strict=True):
                votes.setdefault(letter, Counter())[size] += 1
    return {letter: counts.most_common(1)[0][0] for letter, counts in votes.items() if letter.isalpha()}


def _number(part: str, sizes: Sizes) -> int | str:
    """ "D", "3D" or "3" -> its number; a letter that no tensor tells stays as it is."""
    times, letter = re.fullmatch(r"(\d*)([A-Za-z]*)", part).groups()  # type: ignore[union-attr]
    if not letter:
        return int(times)
    return int(times or 1) * sizes[letter] if letter in sizes else part


# ---- the account


def table(rows: Iterable[Row]) -> str:
    """The account as text; the tensors of the blocks that differ in their number alone share a line."""
    counts: Counter[Row] = Counter(
        row._replace(name=re.sub(r"(?<=[._])\d+(?=[./])", "*", row.name, count=1)) for row in rows
    )
    lines = [("", "tensors", "name", "shape", "")]
    for row, count in counts.items():
        shape = "x".join(map(str, row.shape)) or "scalar"
        lines.append((row.action, str(count) if row.name else "", row.name, shape, row.note))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        f"{action:{widths[0]}}  {count:>{widths[1]}}  {name:{widths[2]}}  {shape:{widths[3]}}  {note}".rstrip()
        for action, count, name, shape, note in lines
    )
