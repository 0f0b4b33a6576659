"""One training step: a pure function of (state, batch). Everything with side effects stays in the loop."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ivt_jax.losses.mla import mla_loss
from ivt_jax.models.ivt import IVT
from ivt_jax.training.gradient_cache import cached_gradients
from ivt_jax.training.hyperparameters import is_on
from ivt_jax.training.objective import Matching, objective

HISTORY = 100  # finite gradient norms whose median tells what is a spike


@struct.dataclass
class TrainState:
    """step: position in the stream of batches; bad_steps: non-finite steps in a row, whose updates were withheld.

    ema: the parameters' moving average, where the config keeps one (optimizer.ema); else empty.
    spikes: where they are skipped (train.spike_factor), "norms" (HISTORY,) float32, the last finite gradient norms, the
    latest at the end and 0 before the first, and "count" () int32 of what was skipped; else empty.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    bad_steps: jax.Array
    ema: Any = struct.field(default_factory=dict)
    spikes: Any = struct.field(default_factory=dict)

    @property
    def learned(self) -> Any:
        """The parameters to evaluate and to export: the average, where there is one."""
        return self.ema or self.params


def init_state(model: IVT, tx: optax.GradientTransformation, config: Any) -> TrainState:
    """A fresh state, a function of the config's seed alone."""
    params = model.init(jax.random.key(config.seed))["params"]
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if is_on(config.optimizer.ema) else {}
    spikes = {"norms": jnp.zeros(HISTORY), "count": zero} if is_on(config.train.spike_factor) else {}
    return TrainState(step=zero, params=params, opt_state=tx.init(params), bad_steps=zero, ema=ema, spikes=spikes)


def find_spike(spikes: Any, norm: jax.Array, factor: float) -> tuple[jax.Array, Any]:
    """Whether a gradient norm () is a spike, above `factor` times the median of those before it; and the next history.

    One that is not finite is no spike, nor is the first.
    """
    known = jnp.where(spikes["norms"] > 0, spikes["norms"], jnp.nan)
    spike = jnp.isfinite(norm) & (norm > factor * jnp.nanmedian(known))
    norms = jnp.where(jnp.isfinite(norm), jnp.append(spikes["norms"][1:], norm), spikes["norms"])
    return spike, {"norms": norms, "count": spikes["count"] + spike}


def average(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The moving average after a step: d ema + (1 - d) params, d = min(decay, (1 + step) / (10 + step)).

    So the initial parameters are soon forgotten, as in TensorFlow's ExponentialMovingAverage.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: d * old + (1 - d) * new, ema, params)


def train_step(
    state: TrainState,
    batch: dict[str, Any],
    *,
    model: IVT,
    tx: optax.GradientTransformation,
    config: Any,
    mask_id: int,
    matching: Matching = mla_loss,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Forward, losses, gradients, update. Returns the next state and scalar metrics.

    Randomness comes from (config.seed, state.step). Where the loss or the gradient's norm is not finite, parameters and
    optimiser stay as they are and `bad_steps` counts; the step itself advances, so that the stream goes on. A spike of
    the norm (train.spike_factor) changes nothing either; it counts among `spikes`, and is no bad step.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    arguments = model, state.params, batch, key, config, mask_id, matching
    if config.runtime.microbatches > 1:
        gradients, metrics = cached_gradients(*arguments)
    else:
        gradients, metrics = jax.grad(objective, argnums=1, has_aux=True)(*arguments)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    taken, spikes = finite, state.spikes
    if is_on(config.train.spike_factor):
        spike, spikes = find_spike(spikes, norm, config.train.spike_factor)
        taken, metrics = finite & ~spike, {**metrics, "spikes": spikes["count"]}
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    updated = optax.apply_updates(state.params, updates), opt_state
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(taken, new, old), updated, (state.params, state.opt_state)
    )
    bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
    ema = average(state.ema, params, state.step, config.optimizer.ema) if is_on(config.optimizer.ema) else {}
    state = TrainState(state.step + 1, params, opt_state, bad_steps, ema, spikes)
    return state, {**metrics, "grad_norm": norm, "bad_steps": bad_steps}
