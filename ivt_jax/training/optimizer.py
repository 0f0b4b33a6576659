"""Optimisers and learning rates: the released SGD (docs/recipe.md), Adam, AdamW, Muon, rates by layer and by name."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from ivt_jax.training.freezing import scale_updates
from ivt_jax.training.hyperparameters import is_on, with_complement
from ivt_jax.training.sharding import path_name

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
MUON_STEPS = 5  # of the Newton-Schulz iteration
MUON_RMS = 0.2  # of Muon's updates, about that of AdamW's: both can have the same rates (Liu et al. 2025, section 2.2)


def released_schedule(peak: float, config: Any, epoch_starts: np.ndarray) -> optax.Schedule:
    """The released rate, constant within an epoch: linear from `start` to `peak`, then a cosine towards `floor`.

    In epoch t < warmup_epochs it is start + t (peak - start) / warmup_epochs, else
    floor + (peak - floor) (1 + cos(pi t / train.epochs)) / 2, with t counted from train.first_epoch.
    `epoch_starts` (epochs + 1,) holds the first step of each epoch.
    """
    o, starts = config.optimizer, jnp.asarray(epoch_starts)

    def rate(step):
        t = jnp.searchsorted(starts, step, side="right") - 1 + config.train.first_epoch
        cosine = o.floor + 0.5 * (peak - o.floor) * (1 + jnp.cos(jnp.pi * t / config.train.epochs))
        return jnp.where(t < o.warmup_epochs, o.start + t * (peak - o.start) / o.warmup_epochs, cosine)

    return rate


def smooth_schedule(peak: float, config: Any, epoch_starts: np.ndarray, total_steps: int) -> optax.Schedule:
    """The rate after a linear warm-up from `start` to `peak`, then along a cosine to `floor` at the last step."""
    o = config.optimizer
    warmup = int(np.interp(o.warmup_epochs, np.arange(len(epoch_starts)), epoch_starts))
    return optax.warmup_cosine_decay_schedule(o.start, peak, warmup, max(total_steps, warmup + 1), o.floor)


def make_schedules(config: Any, epoch_starts: np.ndarray, total_steps: int) -> dict[str, optax.Schedule]:
    """Returns the rates of the two parameter groups, "bias" and "weight", as functions of the step."""
    peaks = {"bias": config.optimizer.bias_learning_rate, "weight": config.optimizer.learning_rate}
    if config.optimizer.schedule == "released":
        return {name: released_schedule(peak, config, epoch_starts) for name, peak in peaks.items()}
    return {name: smooth_schedule(peak, config, epoch_starts, total_steps) for name, peak in peaks.items()}


def make_optimizer(config: Any, schedules: dict[str, optax.Schedule]) -> optax.GradientTransformation:
    """Returns SGD with momentum and coupled weight decay on everything, as in torch and the release; Adam; AdamW; Muon.

    Adam's decay is coupled too, as in torch, and leaves biases out. AdamW decays only matrices. None of them
    decays a learned scale of similarities, since decay would pull it towards 1. Muon is AdamW with other updates of the
    blocks' kernels. With all, biases have their own rate, layers may have theirs (layer_decay), and so may parameters
    (multipliers). A withheld step does not advance the schedules.
    """
    o = config.optimizer
    if o.name == "sgd":
        core = [add_decay(o.weight_decay), optax.trace(o.momentum)]
    else:
        core = [scale_by_adam(with_complement(o.b1), with_complement(o.b2), o.epsilon)]
        if o.name == "muon":
            core = [optax.partition({True: scale_by_muon(o.momentum), False: core[0]}, block_kernels)]
        coupled = o.name == "adam"
        decay = optax.add_decayed_weights(o.weight_decay, mask=no_biases if coupled else matrices)
        core.insert(0 if coupled else 1, decay)
    clip = [optax.clip_by_global_norm(o.clip_norm)] if is_on(o.clip_norm) else []
    rates = {name: optax.scale_by_learning_rate(schedule) for name, schedule in schedules.items()}
    lower = optax.stateless(lambda updates, _: by_layer(updates, o.layer_decay, block_depths(config.model)))
    layers = [lower] if is_on(o.layer_decay, off=1.0) else []
    named = optax.stateless(lambda updates, _: scale_updates(updates, o.multipliers))
    factors = [named] if o.multipliers else []
    return optax.chain(*clip, *core, *layers, *factors, optax.partition(rates, groups))


def add_decay(weight_decay: float | jax.Array) -> optax.GradientTransformation:
    """Returns optax.add_decayed_weights of all parameters but learned scales, without the state of its masks.

    Runs of older versions have no such state in their checkpoints.
    """

    def decay(path, gradient, value):
        return gradient if is_scale(path) else gradient + weight_decay * value

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(decay, updates, params))


def scale_by_adam(b1: tuple[Any, Any], b2: tuple[Any, Any], epsilon: Any = 1e-8) -> optax.GradientTransformation:
    """Returns optax.scale_by_adam, equal to the bit, with each decay given as (b, 1 - b), so that both can be traced.

    optax computes 1 - b itself, in float32 for a traced b: 0.98 would have the complement 0.01999998.
    """

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda g, m: b1[1] * g + b1[0] * m, updates, state.mu)
        nu = jax.tree.map(lambda g, v: b2[1] * jnp.square(g) + b2[0] * v, updates, state.nu)
        count = optax.safe_increment(state.count)
        means = optax.tree.bias_correction(mu, b1[0], count), optax.tree.bias_correction(nu, b2[0], count)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), *means)
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def scale_by_muon(momentum: float | jax.Array) -> optax.GradientTransformation:
    """Returns Muon (Jordan et al. 2024) for stacks of kernels (depth, in, out): each averaged gradient becomes
    nearly orthogonal, by Newton-Schulz iteration, so that no direction of a kernel learns faster than the others.
    """

    def dimensions(updates):
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(1, 2), updates)

    def scale(updates, _):  # an orthogonal matrix has the root mean square 1 / sqrt(its longer side)
        return jax.tree.map(lambda update: update * MUON_RMS * max(update.shape[1:]) ** 0.5, updates)

    orthogonal = optax.contrib.scale_by_muon(ns_steps=MUON_STEPS, beta=momentum, weight_dimension_numbers=dimensions)
    return optax.chain(orthogonal, optax.stateless(scale))


def slots_of(optimizer: str, path: str) -> int:
    """Returns how many values the optimiser keeps for each of a parameter's own."""
    one = optimizer == "sgd" or (optimizer == "muon" and is_block_kernel(path))
    return 1 if one else 2


def by_layer(updates: Any, decay: float, depths: Mapping[str, int]) -> Any:
    """Returns updates that are smaller the lower the layer (layer-wise decay; Bao et al., BEiT, 2022).

    The last block's are multiplied by `decay`, those of the block below by decay^2, and so on down to the embeddings.
    The final norm's and the heads' stay. depths: of `block_depths`.
    """

    def scale(path, update):
        part, layer = path[0].key, path[1].key
        if part.endswith("blocks") and layer != "norm":
            height = jnp.arange(len(update), 0, -1).reshape(-1, *[1] * (update.ndim - 1))
            return update * decay**height
        return update * decay ** (depths[part] + 1) if part in depths else update

    return jax.tree_util.tree_map_with_path(scale, updates)


def block_depths(model: Any) -> dict[str, int]:
    """Returns the number of blocks above each embedding, frozen ones too. model: the config's section."""
    text_depth = model.text.depth if model.towers == 2 else model.depth
    return {"image_embedding": model.depth, "text_embedding": text_depth}


def groups(params: Any) -> Any:
    """Returns each parameter's group: "bias" if that is its name, else "weight", as in the release."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "bias" if path[-1].key == "bias" else "weight", params)


def is_block_kernel(path: str) -> bool:
    """Returns whether the parameter with this path is a stack of kernels of blocks, which Muon updates."""
    return re.search(r"blocks/.*/kernel$", path) is not None


def block_kernels(params: Any) -> Any:
    """Returns True for the stacked kernels of the blocks, and False for the other parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_block_kernel(path_name(path)), params)


def is_scale(path: Any) -> bool:
    """Returns whether a parameter is a logarithm of the scale of similarities: the model's own, or match.learned's."""
    return path[-1].key == "log_scale"


def no_biases(params: Any) -> Any:
    """Returns False for biases and learned scales, and True for the other parameters, which Adam decays."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "bias" and not is_scale(path), params)


def matrices(params: Any) -> Any:
    """Returns True for kernels, which AdamW decays, and False for the other parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
