"""Checks a config before anything is compiled or written: each value by itself, then values that must agree."""

import math
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline.annotations import LAYOUTS
from input_pipeline.datasets import JOINT, datasets_of
from input_pipeline.text_levels import LEVELS, PHRASE_RULES, WORD_RULES
from input_pipeline.tokenizer import CLEAN
from ivt_jax.common.errors import UserError
from ivt_jax.common.messages import counted
from ivt_jax.losses.matching import LOSSES, NORMALISE, TEMPERATURES
from ivt_jax.models.config import hidden_units
from ivt_jax.models.heads import LARGEST_SCALE
from ivt_jax.models.ops import ACTIVATIONS, ATTENTION_KERNELS
from ivt_jax.models.patches import num_patches
from ivt_jax.run.digests import ON_DAMAGE
from ivt_jax.run.workdir import flatten
from ivt_jax.training.freezing import is_frozen, parse_multiplier
from ivt_jax.training.optimizer import OPTIMIZERS

CHOICES = {
    "data.name": (*LAYOUTS, JOINT),
    "data.sampling": ("identity", "uniform"),
    "text.clean": CLEAN,
    "text.phrase_rule": PHRASE_RULES,
    "text.word_rule": WORD_RULES,
    "train.select_on": ("val", "test"),
    "model.image_activation": tuple(ACTIVATIONS),
    "model.pooling": ("class", "attention"),
    "model.text.activation": tuple(ACTIVATIONS),
    "model.text.pooling": ("first", "end", "last"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": tuple(ATTENTION_KERNELS),
    "match.loss": tuple(LOSSES),
    "match.normalise": NORMALISE,
    "bmm.align": ("off", "exact", "fast"),
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": ("released", "smooth"),
    "runtime.on_damage": ON_DAMAGE,
    "runtime.matching": ("global", "sharded"),
}


class Bound(NamedTuple):
    """The values that a number may have."""

    words: str  # for errors: what is expected
    holds: Callable[[float], bool]
    whole: bool = False
    most: float = 3.4e38  # about the largest float32


INT32, INT64 = 2**31 - 1, 2**63 - 1
COUNT = Bound("1 or more", lambda x: x >= 1, whole=True, most=INT32)
WHOLE = Bound("0 or more", lambda x: x >= 0, whole=True, most=INT32)
ONE_OR_TWO = Bound("1 or 2", lambda x: x in (1, 2), whole=True)
AXIS = Bound("1 or more, or -1 for the rest of the devices", lambda x: x >= 1 or x == -1, whole=True, most=INT32)
NOT_NEGATIVE = Bound("0 or more", lambda x: x >= 0)
POSITIVE = Bound("more than 0", lambda x: x > 0)
SHARE = Bound("a share from 0 to 1", lambda x: 0 <= x <= 1)
RATE = Bound("a share from 0 to below 1", lambda x: 0 <= x < 1)

# The bound of every number of configs/default.py. text.length and model.image_size have tighter ones below.
BOUNDS = {
    key: bound
    for bound, keys in (
        (WHOLE._replace(most=INT64), "seed"),
        (COUNT, "data.batch_size data.instances text.length.sentence text.length.phrase text.length.word"),
        (COUNT, "model.patch_size model.stride model.width model.depth model.num_heads model.vocab_size"),
        (COUNT, "model.max_text_length mla.views mla.groups bmm.patch_block train.epochs train.max_bad_steps"),
        (COUNT, "runtime.microbatches runtime.log_every runtime.checkpoint_every runtime.eval_batch_size"),
        (COUNT, "runtime.heartbeat"),
        (WHOLE, "model.projection"),
        (ONE_OR_TWO, "model.towers"),
        (COUNT, "model.text.width model.text.depth model.text.num_heads"),
        (WHOLE, "augment.pad bmm.rows train.first_epoch train.steps train.eval_every runtime.watchdog"),
        (AXIS, "runtime.mesh.data runtime.mesh.fsdp"),
        (POSITIVE, "model.mlp_ratio model.init_std model.norm_epsilon model.text.mlp_ratio optimizer.epsilon"),
        (NOT_NEGATIVE, "mla.weight bmm.word_weight bmm.patch_weight optimizer.learning_rate optimizer.start"),
        (NOT_NEGATIVE, "optimizer.bias_learning_rate optimizer.floor optimizer.warmup_epochs optimizer.weight_decay"),
        (NOT_NEGATIVE, "optimizer.clip_norm train.spike_factor match.temperature id.weight itm.weight"),
        (SHARE, "data.max_damaged data.label_noise augment.flip augment.erase optimizer.layer_decay"),
        (SHARE, "bmm.align_ratio bmm.word_ratio bmm.patch_ratio"),
        (RATE, "data.val_persons model.dropout model.drop_path"),
        (RATE, "optimizer.momentum optimizer.b1 optimizer.b2 optimizer.ema"),
    )
    for key in keys.split()
}
SCALE = "similarity/log_scale"  # the parameter with the learned scale of similarities
SHORTEST = 3  # tokens of a text: [CLS], one word, [SEP]


def check_config(config: ConfigDict, devices: int = 1, resumed: bool = False) -> None:
    """Raises UserError, in one line, for the first fault of a config to be trained on this number of devices.

    resumed: for a run that has begun; it keeps a geometry of patches and crops that a new run may not have.
    """
    check_keys(config)
    # Each expects a config without the faults before it.
    faults = chain(_model_faults(config), _training_faults(config, devices))
    for fault in faults if resumed else chain(faults, _geometry_faults(config)):
        raise UserError(fault)


def check_keys(config: ConfigDict) -> None:
    """Raises UserError, in one line, for the first key with a value that no config may have."""
    values = flatten(config.to_dict())
    for key, known in CHOICES.items():
        if values[key] not in known:
            raise UserError(f'{key} is "{values[key]}"; expected one of {", ".join(known)}')
    for key, bound in BOUNDS.items():
        if expected := _expected(bound, values[key]):
            raise UserError(f"{key} is {values[key]}; expected {expected}")
    size, levels = values["model.image_size"], values["mla.levels"]  # config.json has lists instead of tuples
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise UserError(f"model.image_size is {size}; expected (height, width)")
    if any(_expected(COUNT, extent) for extent in size):
        raise UserError(f"model.image_size is {size}; expected (height, width) in whole pixels, each 1 or more")
    for key, bound in (("model.pixel_mean", SHARE), ("model.pixel_deviation", POSITIVE)):
        numbers = values[key]
        if not isinstance(numbers, (list, tuple)) or len(numbers) != 3 or any(_expected(bound, x) for x in numbers):
            raise UserError(f"{key} is {numbers}; expected three numbers, {bound.words} each, of red, green and blue")
    _check_patterns(values["train.freeze"], values["optimizer.multipliers"])
    _check_sources(config.data)
    if not (isinstance(levels, (list, tuple)) and levels and all(x in LEVELS and levels.count(x) == 1 for x in levels)):
        raise UserError(f"mla.levels is {levels}; expected some of {', '.join(LEVELS)}, each once")


def _check_sources(data: ConfigDict) -> None:
    """Raises UserError for malformed sources or weights, and for those that do not fit data.name or each other."""
    sources, weights, example = data.sources, data.weights, "('cuhk:data/CUHK-PEDES','icfg:data/ICFG-PEDES')"
    if not isinstance(sources, (list, tuple)) or not all(isinstance(source, str) for source in sources):
        raise UserError(f"data.sources is {sources!r}; expected a tuple of strings, such as {example}")
    if data.name == JOINT and not sources:
        raise UserError(f'data.name joint needs data.sources: set --config.data.sources="{example}"')
    if data.name != JOINT and sources:
        raise UserError(f"data.sources needs data.name joint, not {data.name}: use --config=configs/joint.py")
    datasets_of(data)
    if not isinstance(weights, (list, tuple)) or any(_expected(POSITIVE, weight) for weight in weights):
        raise UserError(f"data.weights is {weights!r}; expected a tuple of numbers, {POSITIVE.words}, or ()")
    if weights and len(weights) != len(sources):
        numbers = counted(len(weights), "number")
        raise UserError(f"data.weights has {numbers} for {len(sources)} of data.sources; give one for each")


def _check_patterns(freeze: Any, multipliers: Any) -> None:
    """Raises UserError for the first entry that is no pattern, or no pattern with a factor."""
    for key, entries in (("train.freeze", freeze), ("optimizer.multipliers", multipliers)):
        if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{key} is {entries}; expected a tuple of strings")
    for entry in multipliers:
        try:
            factor = parse_multiplier(entry)[1]
        except ValueError:
            factor = math.nan
        if _expected(NOT_NEGATIVE, factor):
            raise UserError(f'optimizer.multipliers has "{entry}"; expected "PATTERN=FACTOR", the factor 0 or more')
    patterns = {pattern: "train.freeze" for pattern in freeze}
    for pattern, key in (patterns | {parse_multiplier(x)[0]: "optimizer.multipliers" for x in multipliers}).items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f'{key} has "{pattern}", which is no regular expression: {error}') from None


def _expected(bound: Bound, value: Any) -> str:
    """Returns the values that a bound allows, for an error, or "" if it allows this value."""
    if isinstance(value, bool) or not isinstance(value, int if bound.whole else (int, float)):
        return "a whole number" if bound.whole else "a number"
    if isinstance(value, float) and not math.isfinite(value):
        return f"a finite number, {bound.words}"
    if not bound.holds(value):
        return bound.words
    return f"at most {bound.most}" if value > bound.most else ""


def _model_faults(config: ConfigDict) -> Iterator[str]:
    model, size = config.model, tuple(config.model.image_size)
    levels, views = config.mla.levels, config.mla.views
    lengths, positions = config.text.length, model.max_text_length
    if len(levels) > 1 and views not in (1, len(levels)):
        yield f"mla.views {views} does not go with the {len(levels)} of mla.levels: it must be 1 or {len(levels)}"
    for level, length in lengths.items():
        if not SHORTEST <= length <= positions:
            most = f"model.max_text_length {positions} tokens, [CLS] and [SEP] included"
            yield f"text.length.{level} is {length}; expected {SHORTEST} to {most}"
    if model.towers == 2 and model.text.pooling == "last" and set(lengths.values()) != {positions}:
        given = ", ".join(f"{level} {lengths[level]}" for level in LEVELS)
        reason = f"model.text.pooling last reads the last of exactly model.max_text_length {positions} tokens"
        yield f"text.length is {given}: {reason}; set each to {positions}"
    if config.bmm.word_weight and lengths["sentence"] < SHORTEST + 1:
        yield "bmm.word_weight needs text.length.sentence of 4 or more: at most half of the tokens are predicted"
    for name, tower in [("model", model)] + [("model.text", model.text)] * (model.towers == 2):
        if tower.width % tower.num_heads:
            yield f"{name}.width {tower.width} is not a multiple of {name}.num_heads {tower.num_heads}"
        if hidden_units(tower.width, tower.mlp_ratio) < 1:
            yield f"{name}.mlp_ratio {tower.mlp_ratio} of {name}.width {tower.width} is less than one unit of an MLP"
    yield from _two_tower_faults(config) if model.towers == 2 else _one_tower_faults(config)
    if model.attention == "cudnn" and model.dtype == "float32":
        yield "model.attention cudnn needs model.dtype bfloat16"
    if min(size) < model.patch_size:
        yield f"model.image_size {size} is smaller than model.patch_size {model.patch_size}"
    patches = num_patches(size, model.patch_size, model.stride)
    if config.mla.weight and not (config.match.temperature or config.match.learned or has_scale(model)):
        remedy = "set match.temperature above 0, or model.projection"
        yield f"match.temperature 0 is the scale that the model learns, and this model has none: {remedy}"
    loss, temperature = config.match.loss, config.match.temperature
    if config.mla.weight and loss in TEMPERATURES and config.match.normalise != "neither" and temperature >= 1:
        needed = f"match.loss {loss} compares cosines and needs less than 1, such as the published {TEMPERATURES[loss]}"
        yield f"match.temperature is {temperature}; {needed}"
    yield from _pretraining_faults(config)
    if config.bmm.patch_weight and int(config.bmm.patch_ratio * patches) < 1:
        yield f"bmm.patch_ratio {config.bmm.patch_ratio} hides none of the {patches} patches"


def _pretraining_faults(config: ConfigDict) -> Iterator[str]:
    """Yields the faults of the learned temperature and of image-text matching."""
    temperature = config.match.temperature
    if config.mla.weight and config.match.learned and temperature <= 1 / LARGEST_SCALE:
        begin = f"match.learned begins at match.temperature, which is {temperature}"
        yield f"{begin}; set it above {1 / LARGEST_SCALE}, such as to 0.07"
    if config.itm.weight and config.model.towers == 2:
        yield "model.towers 2 has no joint pass of image and text, which itm.weight needs: set itm.weight to 0"
    if config.itm.weight and not config.mla.weight:
        yield "itm.weight needs mla.weight above 0: negatives are drawn by the similarities that mla trains"
    if config.itm.weight and "sentence" not in config.mla.levels:
        yield f"itm.weight needs sentence in mla.levels, which is {tuple(config.mla.levels)}: negatives are drawn by it"


def has_scale(model: ConfigDict) -> bool:
    """Returns whether the model has a learned scale of similarities."""
    return model.projection > 0 or model.towers == 2


def _one_tower_faults(config: ConfigDict) -> Iterator[str]:
    if config.model.pooling != "class":
        yield f"model.pooling {config.model.pooling} needs model.towers 2; one tower pools by the class token"


def _two_tower_faults(config: ConfigDict) -> Iterator[str]:
    model, text, bmm = config.model, config.model.text, config.bmm
    if bmm.word_weight or bmm.patch_weight:
        yield (
            "model.towers 2 has no joint pass of image and text, so nothing is reconstructed: set bmm.word_weight and "
            "bmm.patch_weight to 0"
        )
    if model.relative_positions:
        yield "model.relative_positions needs model.towers 1"
    if bmm.align == "exact" and text.pooling != "first":
        yield f"bmm.align exact could drop the pooled token of model.text.pooling {text.pooling}; choose fast or off"
    if text.causal and text.pooling == "first":
        yield "model.text.causal needs model.text.pooling end or last: the first token attends only to itself"
    if text.projection_bias and not model.projection:
        yield "model.text.projection_bias needs model.projection, the width of the embeddings"
    if not model.projection and model.width != text.width:
        yield (
            f"model.width {model.width} and model.text.width {text.width} differ, so embeddings cannot be compared: "
            "set model.projection to their common width"
        )
    if model.pooling == "attention" and model.projection not in (0, model.width):
        yield (
            f"model.projection {model.projection} is not model.width {model.width}: with model.pooling attention only "
            "texts are projected, to the width of images"
        )


def _training_faults(config: ConfigDict, devices: int) -> Iterator[str]:
    batch_size, parts = config.data.batch_size, config.runtime.microbatches
    if not (config.mla.weight or config.id.weight or config.bmm.word_weight or config.bmm.patch_weight):
        yield "mla.weight, id.weight, bmm.word_weight and bmm.patch_weight are all 0: there is nothing to train"
    yield from () if config.data.identities else _pair_faults(config)
    if config.bmm.rows and batch_size % config.bmm.rows:
        yield f"bmm.rows is {config.bmm.rows}; expected 0 (all) or a divisor of data.batch_size {batch_size}"
    divisors = {f"mla.groups {config.mla.groups}": config.mla.groups, f"the {devices} devices": devices}
    if config.data.sampling == "identity" and config.data.identities:
        divisors[f"data.instances {config.data.instances}"] = config.data.instances
    for name, divisor in divisors.items():
        if batch_size % divisor:
            multiples = sorted({max(batch_size // divisor, 1) * divisor, (batch_size // divisor + 1) * divisor})
            choose = " or ".join(map(str, multiples))
            yield f"data.batch_size {batch_size} is not a multiple of {name}; choose {choose}"
    for name, rows in (("data.batch_size", batch_size), ("bmm.rows", config.bmm.rows)):
        if parts > 1 and rows % (parts * devices):
            yield f"{name} {rows} is not a multiple of runtime.microbatches {parts} times {devices}, the devices"
    if parts == 1 and config.bmm.rows % devices:
        yield f"bmm.rows {config.bmm.rows} is not a multiple of the {devices} devices, which share these rows"
    if config.runtime.matching == "sharded" and config.mla.groups % devices and devices % config.mla.groups:
        must = "it must divide them or be a multiple of them"
        yield f"mla.groups {config.mla.groups} does not go with runtime.matching sharded on {devices} devices: {must}"
    if config.train.first_epoch > config.train.epochs:
        yield f"train.first_epoch {config.train.first_epoch} is after the last, train.epochs {config.train.epochs}"


def _pair_faults(config: ConfigDict) -> Iterator[str]:
    """Yields what needs identities."""
    if config.id.weight:
        yield "id.weight needs data.identities: without, there are no persons to classify; set id.weight to 0"
    if config.data.label_noise:
        yield "data.label_noise needs data.identities: without, captions say which pairs may be negatives; set it to 0"
    if config.train.select_on == "test":
        yield "train.select_on test needs data.identities: pre-training looks at no test split; set it to val"


def _geometry_faults(config: ConfigDict) -> Iterator[str]:
    """Yields one line for each way in which a new run's model could miss pixels.

    Runs of older versions may have such a config; they train well and can be resumed.
    """
    model, size, patch = config.model, tuple(config.model.image_size), config.model.patch_size
    if model.stride > patch:
        advice = f"no patch would cover the pixels between them; choose a stride of 1 to {patch}"
        yield f"model.stride {model.stride} is larger than model.patch_size {patch}: {advice}"
    if model.stride == patch and (unseen := _unseen(model)):
        smaller, larger = tuple(x // patch * patch for x in size), tuple(-(-x // patch) * patch for x in size)
        yield f"model.image_size {size}: {unseen}; choose {smaller} or {larger}"
    if config.augment.pad >= min(size):
        side = f"the shorter side of model.image_size {size}"
        yield f"augment.pad {config.augment.pad} is not below {side}: a random crop could miss the image"


def edge_notice(config: ConfigDict) -> str:
    """Returns a line about pixels at the edges that no patch covers, or "".

    In a new run, patches without overlap must cover the image. Overlapping ones need not, since the release's do not:
    at stride 12, they leave 8 rows and 4 columns of 384x128 out.
    """
    unseen = _unseen(config.model)
    return f"note: model.image_size {tuple(config.model.image_size)}: {unseen}" if unseen else ""


def scale_notice(config: ConfigDict) -> str:
    """Returns a line if similarities are multiplied by the model's own scale, which is frozen; else ""."""
    frozen = has_scale(config.model) and is_frozen(SCALE, config.train.freeze)
    if not (frozen and config.mla.weight and not config.match.temperature):
        return ""
    kept = f"match.temperature 0, and train.freeze names {SCALE}: the scale stays as in the initial parameters"
    return f'note: {kept}; to learn it, leave that pattern out, as with --config.train.freeze="()"'


def persons_notice(config: ConfigDict) -> str:
    """Returns a line if a dataset has persons that the config does not use; else ""."""
    names = {dataset.name for dataset in datasets_of(config.data)} - {"pairs"}
    if config.data.identities or not names:
        return ""
    return "note: data.identities is False: each image counts as a person of its own"


def _unseen(model: ConfigDict) -> str:
    """Returns which last rows and columns of an image no patch covers, as a clause; "" if none."""
    unseen = [(extent - model.patch_size) % model.stride for extent in model.image_size]
    sides = zip(unseen, model.image_size, ("rows", "columns"), strict=True)
    parts = " and ".join(f"the last {count} of {extent} {side}" for count, extent, side in sides if count)
    return f"patches of {model.patch_size} at stride {model.stride} do not cover {parts}" if parts else ""
