"""Optimisers and schedules: the released SGD program (docs/recipe.md) and AdamW; lower rates for lower layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ivt_jax.training.hyperparameters import is_on, with_complement

OPTIMIZERS = ("sgd", "adamw")


def released_schedule(
    peak: float, *, start: float, floor: float, warmup: int, horizon: int, first_epoch: int, epoch_starts: np.ndarray
) -> optax.Schedule:
    """The released rate, constant within an epoch: linear from `start` to `peak`, then a cosine towards `floor`.

    In epoch t < warmup it is start + t (peak - start) / warmup, else
    floor + (peak - floor) (1 + cos(pi t / horizon)) / 2, with t counted from `first_epoch`.
    `epoch_starts` (epochs + 1,) holds the first step of each epoch.
    """
    starts = jnp.asarray(epoch_starts)

    def rate(step):
        t = jnp.searchsorted(starts, step, side="right") - 1 + first_epoch
        cosine = floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * t / horizon))
        return jnp.where(t < warmup, start + t * (peak - start) / warmup, cosine)

    return rate


def smooth_schedule(peak: float, *, start: float, floor: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to `floor` at the last step."""
    return optax.warmup_cosine_decay_schedule(start, peak, warmup_steps, max(total_steps, warmup_steps + 1), floor)


def make_schedules(config: Any, epoch_starts: np.ndarray, total_steps: int) -> dict[str, optax.Schedule]:
    """The rates of the two parameter groups, "bias" and "weight", as functions of the step."""
    o = config.optimizer
    warmup_steps = int(np.interp(o.warmup_epochs, np.arange(len(epoch_starts)), epoch_starts))

    def schedule(peak):
        if o.schedule == "released":
            return released_schedule(
                peak, start=o.start, floor=o.floor, warmup=o.warmup_epochs, horizon=config.train.epochs,
                first_epoch=config.train.first_epoch, epoch_starts=epoch_starts,
            )  # fmt: skip
        return smooth_schedule(peak, start=o.start, floor=o.floor, warmup_steps=warmup_steps, total_steps=total_steps)

    return {"bias": schedule(o.bias_learning_rate), "weight": schedule(o.learning_rate)}


def make_optimizer(config: Any, schedules: dict[str, optax.Schedule]) -> optax.GradientTransformation:
    """SGD with momentum and coupled weight decay on everything, as torch has it and the release uses it; or AdamW.

    AdamW decays matrices alone. Biases follow their own rate in both, and so may each layer. A withheld step does not
    count in the schedules.
    """
    o = config.optimizer
    if o.name == "sgd":
        core = [optax.add_decayed_weights(o.weight_decay), optax.trace(o.momentum)]
    else:
        adam = scale_by_adam(with_complement(o.b1), with_complement(o.b2))
        core = [adam, optax.add_decayed_weights(o.weight_decay, mask=matrices)]
    clip = [optax.clip_by_global_norm(o.clip_norm)] if is_on(o.clip_norm) else []
    rates = {name: optax.scale_by_learning_rate(schedule) for name, schedule in schedules.items()}
    lower = optax.stateless(lambda updates, _: by_layer(updates, o.layer_decay))
    layers = [lower] if is_on(o.layer_decay, off=1.0) else []
    return optax.chain(*clip, *core, *layers, optax.partition(rates, groups))


def scale_by_adam(b1: tuple[Any, Any], b2: tuple[Any, Any]) -> optax.GradientTransformation:
    """Returns optax.scale_by_adam, equal to the bit, with each decay given as (b, 1 - b), so that both can be traced.

    optax computes 1 - b itself, in float32 for a traced b: 0.98 would have the complement 0.01999998.
    """

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda g, m: b1[1] * g + b1[0] * m, updates, state.mu)
        nu = jax.tree.map(lambda g, v: b2[1] * jnp.square(g) + b2[0] * v, updates, state.nu)
        count = optax.safe_increment(state.count)
        means = optax.tree.bias_correction(mu, b1[0], count), optax.tree.bias_correction(nu, b2[0], count)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), *means)
        return scaled, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def by_layer(updates: Any, decay: float) -> Any:
    """Layer-wise decay of the rate (Bao et al., BEiT, 2022): the lower the layer, the smaller its updates.

    Those of the final norm and of the heads stay; those of the last block are multiplied by `decay`, of the block below
    it by decay^2, and so on; the embeddings lie below the first block.
    """
    depth = len(updates["blocks"]["norm1"]["scale"])

    def scale(path, update):
        part, layer = path[0].key, path[1].key
        if part == "blocks" and layer != "norm":
            height = jnp.arange(depth, 0, -1).reshape(-1, *[1] * (update.ndim - 1))
            return update * decay**height
        return update * decay ** (depth + 1) if part.endswith("_embedding") else update

    return jax.tree_util.tree_map_with_path(scale, updates)


def groups(params: Any) -> Any:
    """The group "bias" where the parameter's own name is bias, else "weight"; so the release's rule on its names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "bias" if path[-1].key == "bias" else "weight", params)


def matrices(params: Any) -> Any:
    """True for the kernels, which weight decay shrinks under AdamW."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
