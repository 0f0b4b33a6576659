"""What is wrong with a config, said at the start: faults that would otherwise stop a run late, or bend it unseen."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from input_pipeline.annotations import LAYOUTS
from input_pipeline.errors import UserError
from input_pipeline.text_levels import LEVELS, PHRASE_RULES, WORD_RULES
from ivt_jax.digests import ON_DAMAGE
from ivt_jax.flops import BYTES, OPTIMIZER_SLOTS, num_patches
from ivt_jax.models.blocks import ACTIVATIONS, ATTENTION_KERNELS
from ivt_jax.workdir import flatten

CHOICES = {
    "data.name": tuple(LAYOUTS),
    "data.sampling": ("identity", "uniform"),
    "text.phrase_rule": PHRASE_RULES,
    "text.word_rule": WORD_RULES,
    "train.select_on": ("val", "test"),
    "model.image_activation": tuple(ACTIVATIONS),
    "model.dtype": tuple(BYTES),
    "model.attention": tuple(ATTENTION_KERNELS),
    "bmm.align": ("off", "exact", "fast"),
    "optimizer.name": tuple(OPTIMIZER_SLOTS),
    "optimizer.schedule": ("released", "smooth"),
    "runtime.on_damage": ON_DAMAGE,
    "runtime.matching": ("global", "sharded"),
}
COUNTS = (
    "data.batch_size", "data.instances", "model.patch_size", "model.stride", "model.width", "model.depth",
    "model.num_heads", "mla.views", "mla.groups", "bmm.patch_block", "train.max_bad_steps",
    "runtime.log_every", "runtime.checkpoint_every", "runtime.eval_batch_size", "runtime.heartbeat",
    "runtime.microbatches",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "augment.pad", "bmm.rows", "train.steps", "train.eval_every", "train.first_epoch", "train.spike_factor",
    "optimizer.clip_norm", "runtime.watchdog",
)  # fmt: skip
SHARES = (
    "data.max_damaged", "data.label_noise", "augment.flip", "augment.erase", "bmm.align_ratio", "bmm.word_ratio",
    "bmm.patch_ratio", "optimizer.layer_decay",
)  # fmt: skip
RATES = ("data.val_persons", "model.dropout", "model.drop_path", "optimizer.ema")
SHORTEST = 3  # tokens of a text: [CLS], one of the caption, [SEP]


def check_config(config: ConfigDict, devices: int = 1) -> None:
    """Raises UserError, in one line, for the first fault of a config that `devices` devices are to train."""
    fault = next(find_faults(config, devices), None)
    if fault:
        raise UserError(fault)


def find_faults(config: ConfigDict, devices: int) -> Iterator[str]:
    """One line for each fault; those of single keys come first, for the others rely on them."""
    values = flatten(config.to_dict())
    for key, known in CHOICES.items():
        if values[key] not in known:
            yield f'{key} is "{values[key]}"; expected one of {", ".join(known)}'
    for key in COUNTS:
        if values[key] < 1:
            yield f"{key} is {values[key]}; expected 1 or more"
    for key in NOT_NEGATIVE:
        if values[key] < 0:
            yield f"{key} is {values[key]}; expected 0 or more"
    for key in SHARES:
        if not 0 <= values[key] <= 1:
            yield f"{key} is {values[key]}; expected a share from 0 to 1"
    for key in RATES:
        if not 0 <= values[key] < 1:
            yield f"{key} is {values[key]}; expected a share from 0 to below 1"
    yield from _text_faults(config)
    yield from _model_faults(config)
    yield from _batch_faults(config, devices)
    if config.train.first_epoch > config.train.epochs:
        yield f"train.first_epoch {config.train.first_epoch} lies behind the last, train.epochs {config.train.epochs}"


def _text_faults(config: ConfigDict) -> Iterator[str]:
    levels, views = config.mla.levels, config.mla.views
    if not levels or len(set(levels)) < len(levels) or set(levels) - set(LEVELS):
        yield f"mla.levels is {tuple(levels)}; expected some of {', '.join(LEVELS)}, each once"
    if len(levels) > 1 and views not in (1, len(levels)):
        yield f"mla.views {views} does not go with the {len(levels)} of mla.levels: it must be 1 or {len(levels)}"
    for level, length in config.text.length.items():
        if not SHORTEST <= length <= config.model.max_text_length:
            yield (
                f"text.length.{level} is {length}; expected {SHORTEST} to model.max_text_length "
                f"{config.model.max_text_length} tokens, [CLS] and [SEP] included"
            )
    if config.bmm.word_weight and config.text.length["sentence"] < SHORTEST + 1:
        yield "bmm.word_weight needs text.length.sentence of 4 or more: at most half of the tokens are predicted"


def _model_faults(config: ConfigDict) -> Iterator[str]:
    model = config.model
    if model.width % model.num_heads:
        yield f"model.width {model.width} is not a multiple of model.num_heads {model.num_heads}"
    if model.attention == "cudnn" and model.dtype == "float32":
        yield "model.attention cudnn needs model.dtype bfloat16"
    if model.norm_epsilon <= 0:
        yield f"model.norm_epsilon is {model.norm_epsilon}; expected more than 0"
    if len(model.image_size) != 2:
        yield f"model.image_size is {tuple(model.image_size)}; expected (height, width)"
    elif min(model.image_size) < model.patch_size:
        yield f"model.image_size {tuple(model.image_size)} is smaller than model.patch_size {model.patch_size}"
    elif config.bmm.patch_weight and int(config.bmm.patch_ratio * num_patches(model)) < 1:
        yield f"bmm.patch_ratio {config.bmm.patch_ratio} hides none of the {num_patches(model)} patches"


def _batch_faults(config: ConfigDict, devices: int) -> Iterator[str]:
    batch_size = config.data.batch_size
    if not (config.mla.weight or config.bmm.word_weight or config.bmm.patch_weight):
        yield "mla.weight, bmm.word_weight and bmm.patch_weight are all 0: there is nothing to train"
    if config.bmm.rows and batch_size % config.bmm.rows:
        yield f"bmm.rows is {config.bmm.rows}; expected 0 (all) or a divisor of data.batch_size {batch_size}"
    divisors = {f"mla.groups {config.mla.groups}": config.mla.groups, f"the {devices} devices": devices}
    if config.data.sampling == "identity":
        divisors[f"data.instances {config.data.instances}"] = config.data.instances
    for name, divisor in divisors.items():
        if batch_size % divisor:
            yield f"data.batch_size {batch_size} is not a multiple of {name}"
    parts = config.runtime.microbatches
    for name, rows in (("data.batch_size", batch_size), ("bmm.rows", config.bmm.rows)):
        if parts > 1 and rows % (parts * devices):
            yield f"{name} {rows} is not a multiple of runtime.microbatches {parts} times {devices}, the devices"
    if config.runtime.matching == "sharded" and config.mla.groups % devices and devices % config.mla.groups:
        yield (
            f"mla.groups {config.mla.groups} does not go with runtime.matching sharded on {devices} devices: it must "
            "divide them or be a multiple of them"
        )
