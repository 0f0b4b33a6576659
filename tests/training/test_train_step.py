"""The step: guarded, reproducible, the same on any number of devices, and it lowers for GPU and TPU."""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import default
from ivt_jax.losses.mla import gathered_loss, mla_loss
from ivt_jax.models.build import build_model
from ivt_jax.training.objective import Objective
from ivt_jax.training.optimizer import make_optimizer, make_schedules
from ivt_jax.training.program import build_program
from ivt_jax.training.sharding import global_batch, state_sharding
from ivt_jax.training.train_step import HISTORY, find_spike, init_state, train_step

BATCH_SIZE = 8
LENGTHS = {"sentence": 10, "phrase": 8, "word": 6}


def tiny(**model):
    config = default.get_config()
    config.model.update(
        {"image_size": (24, 12), "patch_size": 6, "stride": 6, "width": 16, "depth": 2, "num_heads": 2,
         "vocab_size": 40, "max_text_length": 12, "dtype": "float32", **model}
    )  # fmt: skip
    return config


def small(**model):
    """One view, two levels: quicker to compile."""
    config = tiny(**model)
    config.mla.update({"levels": ("sentence", "word"), "views": 1})
    return config


def small_batch():
    batch = make_batch()
    return {**batch, "images": batch["images"][:, :1], "erase": batch["erase"][:, :1]}


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    text = {name: rng.integers(5, 40, (BATCH_SIZE, length), np.int32) for name, length in LENGTHS.items()}
    text["sentence"][::2, 7:] = 0
    return {
        "images": rng.integers(0, 256, (BATCH_SIZE, 3, 24, 12, 3), np.uint8),
        "erase": np.tile(np.array([2, 3, 8, 6], np.int32), (BATCH_SIZE, 3, 1)),
        "text": text,
        "mask": {level: ids > 0 for level, ids in text.items()},
        "words": np.where(text["sentence"] > 0, np.arange(10), 0).astype(np.int32),
        "person_ids": np.arange(BATCH_SIZE, dtype=np.int32) // 2,
        "pair_ids": np.arange(BATCH_SIZE, dtype=np.int32),
    }


def program(config, loss=Objective, mesh=None):
    """(init, step), neither of them jitted."""
    model = build_model(config.model)
    tx = make_optimizer(config, make_schedules(config, np.array([0, 1, 2, 3]), 3))
    init = functools.partial(init_state, model, tx, config)
    objective = loss(model, config, mask_id=4)
    if mesh:
        matching = functools.partial(gathered_loss, mla_loss, axes=mesh.axis_names)
        objective = dataclasses.replace(objective, matching=matching, axes=mesh.axis_names)
    return init, functools.partial(train_step, objective=objective, tx=tx, mesh=mesh)


@pytest.fixture(scope="module")
def single():
    """The program on one device: initial state and compiled step."""
    init, step = program(tiny())
    state = jax.jit(init)()
    return state, jax.jit(step).lower(state, make_batch()).compile()


def assert_trees(compare, actual, expected):
    jax.tree.map(lambda x, y: compare(np.asarray(x), np.asarray(y)), actual, expected)


equal = np.testing.assert_array_equal
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def test_metrics_add_up_and_parameters_move(single):
    state, step = single
    after, metrics = step(state, make_batch())
    np.testing.assert_allclose(metrics["loss"], metrics["mla"] + metrics["words"] + metrics["patches"], rtol=1e-6)
    assert set(metrics) == {"loss", "mla", "words", "patches", "grad_norm", "bad_steps"}
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), after.params, state.params)
    assert all(jax.tree.leaves(moved))
    assert (after.step, after.bad_steps) == (1, 0)


def test_the_loss_falls_on_a_batch_seen_again_and_again(single):
    state, step = single
    losses = []
    for _ in range(12):
        state, metrics = step(state, make_batch())
        losses.append(float(metrics["mla"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(single):
    state, step = single
    good, _ = step(state, make_batch())
    broken = jax.tree.map(lambda x: x, good.params)
    broken["blocks"]["attn"]["qkv"]["kernel"] = broken["blocks"]["attn"]["qkv"]["kernel"].at[0, 0, 0].set(jnp.inf)
    bad = good.replace(params=broken)
    for count in (1, 2):
        bad, metrics = step(bad, make_batch())
        assert not np.isfinite(metrics["loss"])
        assert (bad.bad_steps, metrics["bad_steps"], bad.step) == (count, count, 1 + count)
        assert_trees(equal, (bad.params, bad.opt_state), (broken, good.opt_state))
    mended, metrics = step(bad.replace(params=good.params), make_batch())
    assert np.isfinite(metrics["loss"])
    assert (mended.bad_steps, mended.step) == (0, 4)
    assert (np.asarray(mended.params["blocks"]["norm"]["scale"]) != good.params["blocks"]["norm"]["scale"]).any()


def test_the_average_follows_the_parameters():
    """d = min(0.2, (1 + n) / (10 + n)) after n steps: 1/10, 2/11, 0.2; the state's `learned` is the average."""
    config = small()
    config.optimizer.ema = 0.2
    init, step = program(config)
    state, step = jax.jit(init)(), jax.jit(step)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
    for d in (0.1, 2 / 11, 0.2):
        state, _ = step(state, small_batch())
        expected = jax.tree.map(lambda old, new, d=d: d * old + (1 - d) * np.asarray(new), expected, state.params)
        assert_trees(close, state.ema, expected)
    assert state.learned is state.ema
    assert not np.allclose(state.ema["blocks"]["norm"]["bias"], state.params["blocks"]["norm"]["bias"], rtol=1e-3)


def test_without_an_average_the_parameters_are_what_was_learned(single):
    state, _ = single
    assert state.ema == {} and state.learned is state.params


def test_a_finite_loss_with_a_gradient_that_is_not_is_withheld(single):
    # sqrt has no finite derivative at 0: the loss is 0 + the parameters' sum times 0, its gradient NaN.
    class Root(Objective):
        def __call__(self, params, *rest):
            loss = sum(jnp.sqrt(jnp.sum(x * 0)) for x in jax.tree.leaves(params))
            return loss, {"loss": loss}

    state, _ = single
    _, step = program(tiny(), Root)
    after, metrics = jax.jit(step)(state, {})
    assert metrics["loss"] == 0
    assert not np.isfinite(metrics["grad_norm"])
    assert (after.step, after.bad_steps) == (1, 1)
    assert_trees(equal, (after.params, after.opt_state), (state.params, state.opt_state))


def test_the_key_of_a_step_is_that_of_the_seed_with_the_step_folded_in(single):
    """A run that an older version began goes on with the same draws."""

    class Keyed(Objective):
        def __call__(self, params, batch, key):
            loss = sum(jnp.sum(x) for x in jax.tree.leaves(params))
            return loss, {"loss": loss, "key": jax.random.key_data(key)}

    config = tiny()
    config.seed = 5
    _, metrics = jax.jit(program(config, Keyed)[1])(single[0].replace(step=jnp.int32(7)), {})
    equal(metrics["key"], jax.random.key_data(jax.random.fold_in(jax.random.key(5), 7)))


def test_the_norm_is_that_of_the_gradient(single):
    class Linear(Objective):
        def __call__(self, params, *rest):
            loss = 3 * sum(jnp.sum(x) for x in jax.tree.leaves(params))
            return loss, {"loss": loss}

    _, metrics = jax.jit(program(tiny(), Linear)[1])(single[0], {})
    count = sum(x.size for x in jax.tree.leaves(single[0].params))
    np.testing.assert_allclose(metrics["grad_norm"], 3 * np.sqrt(count), rtol=1e-6)


def test_the_same_seed_gives_the_same_bits(single):
    state, step = single
    runs = []
    for _ in range(2):
        last = state
        for seed in (0, 1):
            last, metrics = step(last, make_batch(seed))
        runs.append((last, metrics))
    assert_trees(equal, *runs)
    assert_trees(equal, jax.jit(program(tiny())[0])(), state)


def test_each_step_has_its_own_randomness(single):
    state, step = single
    _, first = step(state, make_batch())
    _, other = step(state.replace(step=state.step + 1), make_batch())
    assert abs(first["loss"] - other["loss"]) > 1e-4  # same parameters and batch: other masks, drops and noise


def test_parameters_and_draws_follow_the_seed(single):
    state, step = single
    config = tiny()
    config.seed += 1
    init, other_step = program(config)
    other = jax.jit(init)()
    kernel = other.params["blocks"]["attn"]["qkv"]["kernel"]
    assert (np.asarray(kernel) != state.params["blocks"]["attn"]["qkv"]["kernel"]).any()
    _, one = step(state, make_batch())
    _, two = jax.jit(other_step)(state, make_batch())
    assert abs(one["loss"] - two["loss"]) > 1e-4  # same parameters and batch: other masks, drops and noise


# ---- any number of devices


def on_mesh(config, data, fsdp):
    """The mesh, and (init, step) jitted for it."""
    mesh = Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))
    init, step = program(config, mesh=mesh)
    sharding = state_sharding(mesh, jax.eval_shape(init))
    return mesh, jax.jit(init, out_shardings=sharding), jax.jit(step, out_shardings=(sharding, None))


@pytest.fixture(scope="module")
def two_steps(single):
    state, step = single
    state, first = step(state, make_batch(0))
    state, second = step(state, make_batch(1))
    return state, first, second


@pytest.mark.parametrize("data, fsdp", [(8, 1), (2, 4)])
def test_devices_share_the_work_and_change_neither_loss_nor_parameters(single, two_steps, data, fsdp):
    mesh, init, step = on_mesh(tiny(), data, fsdp)
    batches = [global_batch(mesh, make_batch(seed)) for seed in (0, 1)]
    state = init()
    step = step.lower(state, batches[0]).compile()
    state, first = step(state, batches[0])
    state, second = step(state, batches[1])
    assert_trees(close, (state.params, first, second), (two_steps[0].params, *two_steps[1:]))
    kernel = state.params["blocks"]["mlp_vis"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    whole, part = (compiled.cost_analysis()["flops"] for compiled in (single[1], step))
    assert part < 1.25 * whole / (data * fsdp)  # no pass is repeated on every device


def test_negatives_are_the_global_batch(single):
    """On eight devices the matching is over all pairs: not the mean of what each would find in its own rows."""
    config = tiny(dropout=0.0, drop_path=0.0)
    config.bmm.update({"align": "off", "word_weight": 0.0, "patch_weight": 0.0})
    objective, params = Objective(build_model(config.model), config, 4), single[0].params
    run = jax.jit(lambda params, batch: objective(params, batch, jax.random.key(0))[1]["mla"])
    batch = {**make_batch(), "erase": np.zeros((BATCH_SIZE, 3, 4), np.int32)}
    whole, (mesh, _, step) = run(params, batch), on_mesh(config, 8, 1)
    close(step(single[0], global_batch(mesh, batch))[1]["mla"], whole)
    halves = [run(params, jax.tree.map(lambda x, half=half: x[half], batch)) for half in (np.s_[:4], np.s_[4:])]
    assert abs(np.mean(halves) - whole) > 0.1


# ---- accelerators


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16", "remat": True, "unroll": True, "stride": 4}])
def test_the_step_lowers_for_gpu_and_tpu(changes):
    config = tiny(**changes)
    config.runtime.mesh.update({"data": 4, "fsdp": 2})
    compiled = build_program(config, np.array([0, 1, 2, 3]), 3, mask_id=4)  # what a run compiles
    state = jax.eval_shape(compiled.init)
    exported = jax.export.export(compiled.step, platforms=("cuda", "tpu"))(
        state, make_batch(), compiled.hyperparameter_shapes
    )
    assert exported.platforms == ("cuda", "tpu")
    assert exported.nr_devices == 8
    leaves = jax.tree.leaves(state)
    assert [(x.shape, x.dtype) for x in exported.out_avals[: len(leaves)]] == [(x.shape, x.dtype) for x in leaves]


# ---- spikes


def test_a_spike_is_a_norm_far_above_the_median_of_the_last_finite_ones():
    spikes = {"norms": jnp.zeros(HISTORY), "count": jnp.int32(0)}
    norms = [2.0, 7.0, np.nan, 3.0, 100.0, np.inf, 3.1, 14.1, *[50.0] * 120, 150.0, 151.0, 50.0]  # 150 is not above
    find, seen, finite = jax.jit(find_spike), [], []
    for norm in norms:
        spike, spikes = find(spikes, jnp.float32(norm), 3.0)
        seen.append(bool(spike))
        # By hand: finite, and above three times the median of at most a hundred finite norms before it.
        expected = bool(finite) and np.isfinite(norm) and norm > 3.0 * np.median(np.float32(finite[-100:]))
        assert seen[-1] == expected, norm
        finite += [norm] if np.isfinite(norm) else []
    assert seen[1] and seen[4] and seen[-2] and not seen[-1] and sum(seen) == spikes["count"]
    np.testing.assert_array_equal(spikes["norms"], np.float32(finite[-HISTORY:]))


def test_the_median_is_that_of_the_last_hundred_norms():
    # Of the last hundred norms half are 1 and half are 10: the median is 5.5. Of the last 101 it is 1, of 99 it is 10.
    spikes = {"norms": jnp.zeros(HISTORY), "count": jnp.int32(0)}
    find = jax.jit(find_spike)
    for norm in [1.0] * 51 + [10.0] * 50:
        _, spikes = find(spikes, jnp.float32(norm), 3.0)
    assert [bool(find(spikes, jnp.float32(norm), 3.0)[0]) for norm in (16.4, 16.6)] == [False, True]


@pytest.mark.parametrize("count", [1, 2])
def test_micro_batches_are_computed_one_after_the_other(single, monkeypatch, count):
    state, _ = single
    calls = []

    def cached(objective, params, *rest):
        calls.append(objective.config.runtime.microbatches)
        return jax.tree.map(jnp.zeros_like, params), {"loss": jnp.zeros(())}

    monkeypatch.setattr("ivt_jax.training.global_gradients.cached_gradients", cached)
    config = tiny()
    config.runtime.microbatches = count
    jax.eval_shape(program(config)[1], state, make_batch())
    assert calls == ([2] if count == 2 else [])


def test_a_spike_changes_nothing_and_is_no_bad_step():
    config = small()
    config.train.spike_factor = 4.0
    init, step = program(config)
    state, step = jax.jit(init)(), jax.jit(step)
    state, metrics = step(state, small_batch())
    assert metrics["spikes"] == 0
    calm = {"norms": jnp.full(HISTORY, metrics["grad_norm"] / 100), "count": jnp.int32(0)}
    after, metrics = step(state.replace(spikes=calm), small_batch())
    assert (metrics["spikes"], after.bad_steps, after.step) == (1, 0, 2)
    assert_trees(equal, (after.params, after.opt_state), (state.params, state.opt_state))
    taken, metrics = step(state, small_batch())  # by its own history the same step is none
    assert metrics["spikes"] == 0
    assert (np.asarray(taken.params["blocks"]["norm"]["scale"]) != state.params["blocks"]["norm"]["scale"]).any()
