"""One training step: a pure function of (state, batch). Everything with side effects stays in the loop."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ivt_jax.losses.heads import TEMPERATURE, init_heads, without_heads
from ivt_jax.models.build import Model
from ivt_jax.models.heads import similarity_scale
from ivt_jax.training.freezing import join_params, refuse_patterns, split_params
from ivt_jax.training.global_gradients import global_gradients, gradients_of_rows
from ivt_jax.training.hyperparameters import is_on
from ivt_jax.training.objective import Objective
from ivt_jax.training.sharding import paths_of

HISTORY = 100  # finite gradient norms; a spike is far above their median


@struct.dataclass
class TrainState:
    """What a run keeps from step to step.

    step: position in the stream of batches. bad_steps: non-finite steps in a row, whose updates were withheld.
    params: the model's and the heads of losses/heads.py. opt_state: of the trained parameters only.
    ema: the parameters' moving average; empty without optimizer.ema.
    spikes: "norms" (HISTORY,) float32, the last finite gradient norms, oldest first, padded with 0 in front; "count" ()
    int32 of skipped steps; empty without train.spike_factor.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    bad_steps: jax.Array
    ema: Any = struct.field(default_factory=dict)
    spikes: Any = struct.field(default_factory=dict)

    @property
    def learned(self) -> Any:
        """The model's parameters to evaluate and to export: the average if there is one."""
        return without_heads(self.ema or self.params)


def init_state(model: Model, tx: optax.GradientTransformation, config: Any, persons: int = 0) -> TrainState:
    """Returns the state before the first step. It depends on the config's seed alone.

    persons: classes of the identity loss. Raises UserError for a pattern of the config that matches no parameter.
    """
    key = jax.random.key(config.seed)
    params = {**model.init(key)["params"], **init_heads(key, config, persons)}
    refuse_patterns(paths_of(params), config)
    slots = tx.init(split_params(params, config.train.freeze)[0])
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if is_on(config.optimizer.ema) else {}
    spikes = {"norms": jnp.zeros(HISTORY), "count": zero} if is_on(config.train.spike_factor) else {}
    return TrainState(step=zero, params=params, opt_state=slots, bad_steps=zero, ema=ema, spikes=spikes)


def find_spike(spikes: Any, norm: jax.Array, factor: float) -> tuple[jax.Array, Any]:
    """Returns if a gradient norm () is a spike, above `factor` times the median of those before; and the new history.

    A norm that is not finite is no spike, nor is the first.
    """
    known = jnp.where(spikes["norms"] > 0, spikes["norms"], jnp.nan)
    spike = jnp.isfinite(norm) & (norm > factor * jnp.nanmedian(known))
    norms = jnp.where(jnp.isfinite(norm), jnp.append(spikes["norms"][1:], norm), spikes["norms"])
    return spike, {"norms": norms, "count": spikes["count"] + spike}


def average(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """Returns the moving average after a step: d ema + (1 - d) params, d = min(decay, (1 + step) / (10 + step)).

    A d that starts small forgets the initial parameters soon, as in TensorFlow's ExponentialMovingAverage.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: d * old + (1 - d) * new, ema, params)


def train_step(
    state: TrainState,
    batch: dict[str, Any],
    objective: Objective,
    tx: optax.GradientTransformation,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update, and scalar metrics. mesh: of the objective's axes; None = one device.

    Randomness comes from (config.seed, state.step). If the loss or the gradient's norm is not finite, parameters and
    optimiser stay as they are and `bad_steps` grows; the step advances, so that the next batch is another one. A spike
    of the norm (train.spike_factor) changes nothing either; it counts in `spikes`, not in `bad_steps`.
    """
    config = objective.config
    trained, frozen = split_params(state.params, config.train.freeze)
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    if mesh:
        gradients, metrics = global_gradients(objective, mesh, state.params, batch, key)
    else:
        gradients, metrics = gradients_of_rows(objective, state.params, batch, key)
    if TEMPERATURE in state.params:
        metrics = {**metrics, "temperature": 1 / similarity_scale(state.params[TEMPERATURE])}
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    taken, spikes = finite, state.spikes
    if is_on(config.train.spike_factor):
        spike, spikes = find_spike(spikes, norm, config.train.spike_factor)
        taken, metrics = finite & ~spike, {**metrics, "spikes": spikes["count"]}
    updates, opt_state = tx.update(gradients, state.opt_state, trained)
    updated = optax.apply_updates(trained, updates), opt_state
    trained, opt_state = jax.tree.map(lambda new, old: jnp.where(taken, new, old), updated, (trained, state.opt_state))
    bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
    ema = {}
    if is_on(config.optimizer.ema):
        before, _ = split_params(state.ema, config.train.freeze)
        ema = join_params(average(before, trained, state.step, config.optimizer.ema), frozen)
    state = TrainState(state.step + 1, join_params(trained, frozen), opt_state, bad_steps, ema, spikes)
    return state, {**metrics, "grad_norm": norm, "bad_steps": bad_steps}
