"""Schedules worked out by hand; SGD, Adam, AdamW and Muon against their rules written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from ivt_jax.training.optimizer import (
    OPTIMIZERS,
    block_depths,
    by_layer,
    groups,
    make_optimizer,
    make_schedules,
    matrices,
    released_schedule,
    slots_of,
)
from ivt_jax.training.sharding import paths_of

# Epochs of 3, 5, 2, 4, ... steps: the released sampler's epochs differ in length.
LENGTHS = np.resize([3, 5, 2, 4], 121)
STARTS = np.concatenate([[0], np.cumsum(LENGTHS)])
# From 5e-5 by (peak - 5e-5) / 5 an epoch, then 1e-5 + (peak - 1e-5) (1 + cos(pi t / 120)) / 2.
COSINE_5 = (1 + 0.9914448613738104) / 2
RATES = {
    0.005: {0: 5e-5, 1: 1.04e-3, 4: 4.01e-3, 5: 1e-5 + 4.99e-3 * COSINE_5, 60: 2.505e-3, 120: 1e-5},
    0.01: {0: 5e-5, 1: 2.04e-3, 4: 8.01e-3, 5: 1e-5 + 9.99e-3 * COSINE_5, 60: 5.005e-3, 120: 1e-5},
}


@pytest.mark.parametrize("peak", RATES)
@pytest.mark.parametrize("first_epoch", [0, 1])
def test_released_schedule_by_hand_and_constant_within_an_epoch(peak, first_epoch):
    config = default.get_config()  # start 5e-5, floor 1e-5, 5 epochs of warm-up, 120 epochs
    config.train.first_epoch = first_epoch
    rate = released_schedule(peak, config, STARTS)
    for epoch, expected in RATES[peak].items():
        if epoch >= first_epoch:
            index = epoch - first_epoch
            actual = rate(np.arange(STARTS[index], STARTS[index + 1]))
            np.testing.assert_allclose(actual, np.full(LENGTHS[index], expected), rtol=1e-4)


def test_the_released_program_of_cuhk_has_two_peaks():
    config = default.get_config()
    schedules = make_schedules(config, STARTS[:121], total_steps=int(STARTS[120]))
    for name, peak in (("weight", 0.005), ("bias", 0.01)):  # epochs count from 1
        np.testing.assert_allclose(schedules[name](0), RATES[peak][1], rtol=1e-5)
        np.testing.assert_allclose(schedules[name](int(STARTS[59])), RATES[peak][60], rtol=1e-5)


def test_smooth_schedule_by_hand():
    config = default.get_config()
    config.optimizer.update({"schedule": "smooth", "learning_rate": 1e-2, "start": 0.0, "floor": 1e-3})
    config.optimizer.warmup_epochs = 1.5  # 3 steps and half of 5: 5 whole steps
    rate = make_schedules(config, STARTS, total_steps=25)["weight"]
    cosine = 1e-3 + 9e-3 * (1 + np.cos(np.pi / 4)) / 2
    np.testing.assert_allclose([rate(s) for s in (0, 1, 5, 10, 15, 25)],
                               [0, 2e-3, 1e-2, cosine, 5.5e-3, 1e-3], atol=1e-8)  # fmt: skip


def test_a_smooth_schedule_that_ends_within_its_warm_up_still_rises_to_its_peak():
    config = default.get_config()
    config.optimizer.update({"schedule": "smooth", "learning_rate": 1e-2, "bias_learning_rate": 2e-2, "start": 0.0})
    config.optimizer.update({"floor": 1e-3, "warmup_epochs": 2})  # 8 steps
    schedules = make_schedules(config, STARTS, total_steps=8)
    for name, peak in (("weight", 1e-2), ("bias", 2e-2)):
        rates = [schedules[name](step) for step in (0, 2, 8, 9)]
        np.testing.assert_allclose(rates, [0, peak / 4, peak, 1e-3], atol=1e-8)


PARAMS = {
    "attn": {"qkv": {"kernel": [[0.5, -1.0], [2.0, 0.25]], "bias": [1.0, -2.0]}},
    "norm": {"scale": [1.0, 1.5], "bias": [0.5, 0.5]},
    "text_embedding": {"word": [[3.0, -1.0]]},
}
PARAMS = jax.tree.map(np.asarray, PARAMS, is_leaf=lambda x: isinstance(x, list))


def test_groups_and_matrices_follow_the_names():
    expected = {"attn": {"qkv": {"kernel": "weight", "bias": "bias"}}, "norm": {"scale": "weight", "bias": "bias"},
                "text_embedding": {"word": "weight"}}  # fmt: skip
    assert groups(PARAMS) == expected
    assert matrices(PARAMS) == {"attn": {"qkv": {"kernel": True, "bias": False}},
                                "norm": {"scale": False, "bias": False}, "text_embedding": {"word": False}}  # fmt: skip


RATE = {"weight": [0.1, 0.2, 0.05], "bias": [0.3, 0.1, 0.2]}


def run(config, gradients, params=PARAMS):
    schedules = {name: lambda step, rates=rates: jnp.asarray(rates)[step] for name, rates in RATE.items()}
    tx = make_optimizer(config, schedules)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = tx.init(params)
    for g in gradients:
        updates, state = tx.update(jax.tree.map(jnp.float32, g), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def draw_gradients(params=PARAMS):
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda x: rng.standard_normal(x.shape), params) for _ in range(3)]


def rate_of(path, step):
    return RATE["bias" if path[-1].key == "bias" else "weight"][step]


def assert_trees_close(actual, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), actual, expected)


def test_sgd_is_torchs_rule():
    config = default.get_config()
    config.optimizer.weight_decay = 0.04
    gradients = draw_gradients()

    def follow(path, p, *leaves):
        buffer = 0.0
        for step, g in enumerate(leaves):
            buffer = 0.9 * buffer + (g + 0.04 * p)
            p = p - rate_of(path, step) * buffer
        return p

    assert_trees_close(run(config, gradients), jax.tree_util.tree_map_with_path(follow, PARAMS, *gradients))


def test_adamw_decays_kernels_alone():
    config = default.get_config()
    config.optimizer.update({"name": "adamw", "weight_decay": 0.3, "b1": 0.8, "b2": 0.95})
    gradients = draw_gradients()

    def follow(path, p, *leaves):
        m = v = 0.0
        decay = 0.3 if path[-1].key == "kernel" else 0.0
        for step, g in enumerate(leaves):
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            corrected = (m / (1 - 0.8 ** (step + 1))) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8)
            p = p - rate_of(path, step) * (corrected + decay * p)
        return p

    assert_trees_close(run(config, gradients), jax.tree_util.tree_map_with_path(follow, PARAMS, *gradients))


def test_adam_is_torchs_rule():
    """The decay is added to the gradient, of all but biases, so that it passes through both moments."""
    config = default.get_config()
    config.optimizer.update({"name": "adam", "weight_decay": 0.3, "b1": 0.8, "b2": 0.95, "epsilon": 1e-3})
    gradients = draw_gradients()

    def follow(path, p, *leaves):
        m = v = 0.0
        decay = 0.0 if path[-1].key == "bias" else 0.3
        for step, g in enumerate(leaves):
            g = g + decay * p
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            corrected = (m / (1 - 0.8 ** (step + 1))) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-3)
            p = p - rate_of(path, step) * corrected
        return p

    assert_trees_close(run(config, gradients), jax.tree_util.tree_map_with_path(follow, PARAMS, *gradients))


BLOCKS = {  # two blocks, with a kernel that is wider than high and one that is higher than wide
    "blocks": {
        "attn": {"qkv": {"kernel": np.full((2, 3, 6), 0.5), "bias": np.ones((2, 6))}},
        "mlp_txt": {"fc2": {"kernel": np.full((2, 5, 2), 0.5), "bias": np.ones((2, 2))}},
        "norm1": {"scale": np.ones((2, 3))},
    },
    "image_blocks": {"mlp": {"fc1": {"kernel": np.full((1, 2, 2), 0.5)}}},
    "word_head": {"kernel": np.full((3, 3), 0.5)},
}


def orthogonal(x):
    """Five Newton-Schulz steps on x (M, N) float64 with the coefficients of Jordan et al. (2024)."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_moves_the_kernels_of_blocks_by_orthogonal_matrices():
    """Nesterov's momentum; the update's root mean square is about 0.2. Kernels decay; all else moves as with AdamW."""
    config = default.get_config()
    config.optimizer.update({"name": "muon", "momentum": 0.7, "weight_decay": 0.3})
    gradients = draw_gradients(BLOCKS)

    def follow(path, p, *leaves):
        m = 0.0
        for step, g in enumerate(leaves):
            m = 0.7 * m + 0.3 * g
            ahead = 0.7 * m / (1 - 0.7 ** (step + 2)) + 0.3 * g / (1 - 0.7 ** (step + 1))
            update = np.stack([0.2 * max(x.shape) ** 0.5 * orthogonal(x) for x in ahead])
            p = p - rate_of(path, step) * (update + 0.3 * p)
        return p

    moved = run(config, gradients, BLOCKS)
    config.optimizer.name = "adamw"
    others = run(config, gradients, BLOCKS)

    def compare(path, p, actual, other, *leaves):
        kernel = path[0].key.endswith("blocks") and path[-1].key == "kernel"
        expected = follow(path, p, *leaves) if kernel else other
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 if kernel else 0)

    jax.tree_util.tree_map_with_path(compare, BLOCKS, moved, others, *gradients)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_values_that_an_optimiser_keeps(name):
    config = default.get_config()
    config.optimizer.name = name
    state = make_optimizer(config, dict.fromkeys(RATE, optax.constant_schedule(0.1))).init(BLOCKS)
    paths = dict(zip(paths_of(BLOCKS), jax.tree.leaves(BLOCKS), strict=True))
    kept = sum(
        np.size(x)
        for x, path in zip(jax.tree.leaves(state), paths_of(state), strict=True)
        if path.endswith(tuple(paths))
    )
    assert kept == sum(slots_of(name, path) * x.size for path, x in paths.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_learned_scale_is_not_decayed(name):
    """With gradients of 0, only the decay moves parameters. The state is as of older versions: they had no masks."""
    config = default.get_config()
    config.optimizer.update({"name": name, "weight_decay": 0.3})
    params = {
        name: {"log_scale": jnp.float32(2.0), "kernel": jnp.ones((1, 1))} for name in ("temperature", "similarity")
    }
    tx = make_optimizer(config, dict.fromkeys(RATE, optax.constant_schedule(0.1)))
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for head in updates.values():
        assert head["log_scale"] == 0 and head["kernel"] < 0
    if name == "sgd":
        assert state[0] == optax.add_decayed_weights(0.3).init(params) == optax.EmptyState()


@pytest.mark.parametrize(("name", "epsilon"), [("adam", 1e-3), ("adamw", 1e-8)])
def test_the_epsilon_is_added_to_the_root_of_the_second_moment(name, epsilon):
    """After one step both corrected moments are the gradient's: g / (|g| + epsilon), which is 1/2 of g = epsilon."""
    config = default.get_config()
    config.optimizer.update({"name": name, "weight_decay": 0.0, "epsilon": epsilon})
    gradient = jax.tree.map(lambda x: np.full(x.shape, epsilon), PARAMS)
    expected = jax.tree_util.tree_map_with_path(lambda path, p: p - rate_of(path, 0) * 0.5, PARAMS)
    assert_trees_close(run(config, [gradient]), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_factors_of_the_rate_go_to_the_first_pattern_that_names_the_parameter(name):
    """Norm biases x 3 (not x 7), the norm's scale x 7, all else as it was; the decay counts with the rate."""
    plain, changed = default.get_config(), default.get_config()
    for config in (plain, changed):
        config.optimizer.update({"name": name, "weight_decay": 0.1})
    changed.optimizer.multipliers = ("norm/bias=3", "norm/=7", "word=0")
    gradient = draw_gradients()[0]
    before, after = (run(config, [gradient]) for config in (plain, changed))
    moves = [jax.tree.map(lambda x, y: np.asarray(x) - y, params, PARAMS) for params in (before, after)]
    factors = {
        "attn": {"qkv": {"kernel": 1, "bias": 1}},
        "norm": {"scale": 7, "bias": 3},
        "text_embedding": {"word": 0},
    }
    jax.tree.map(
        lambda old, new, factor: np.testing.assert_allclose(new, factor * old, rtol=1e-4, atol=1e-6), *moves, factors
    )


@pytest.mark.parametrize("clip, factor", [(0.0, 1.0), (100.0, 1.0), (0.5, None)])
def test_clipping_is_by_the_global_norm_of_the_gradient(clip, factor):
    config = default.get_config()
    config.optimizer.update({"clip_norm": clip, "weight_decay": 0.0})
    gradient = draw_gradients()[0]
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    factor = factor or clip / norm
    expected = jax.tree_util.tree_map_with_path(lambda path, p, g: p - rate_of(path, 0) * factor * g, PARAMS, gradient)
    assert_trees_close(run(config, [gradient]), expected)


def test_weight_decay_is_not_clipped():
    """The gradient is clipped to norm 0.5 first; then SGD adds 0.3 times the parameters."""
    config = default.get_config()
    config.optimizer.update({"clip_norm": 0.5, "weight_decay": 0.3})
    gradient = draw_gradients()[0]
    factor = 0.5 / np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))

    def follow(path, p, g):
        return p - rate_of(path, 0) * (factor * g + 0.3 * p)

    assert_trees_close(run(config, [gradient]), jax.tree_util.tree_map_with_path(follow, PARAMS, gradient))


def test_the_lower_the_layer_the_smaller_its_updates():
    """Three blocks at decay 0.5: heads and final norm 1, blocks 1/8, 1/4, 1/2 from the lowest on, embeddings 1/16."""
    updates = {
        "image_embedding": {"kernel": np.full((4, 2), 16.0)}, "text_embedding": {"word": np.full((5, 2), 16.0)},
        "blocks": {"norm1": {"scale": np.full((3, 2), 16.0)}, "attn": {"qkv": {"kernel": np.full((3, 2, 6), 16.0)}},
                   "norm": {"scale": np.full(2, 16.0)}},
        "word_head": {"kernel": np.full((2, 2), 16.0)},
    }  # fmt: skip
    scaled = by_layer(updates, 0.5, dict.fromkeys(("image_embedding", "text_embedding"), 3))
    for embedding in (scaled["image_embedding"]["kernel"], scaled["text_embedding"]["word"]):
        np.testing.assert_array_equal(embedding, np.ones_like(embedding))
    for block in (scaled["blocks"]["norm1"]["scale"], scaled["blocks"]["attn"]["qkv"]["kernel"]):
        for layer, expected in zip(block, (2.0, 4.0, 8.0), strict=True):
            np.testing.assert_array_equal(layer, np.full_like(layer, expected))
    for same in (scaled["blocks"]["norm"]["scale"], scaled["word_head"]["kernel"]):
        np.testing.assert_array_equal(same, np.full_like(same, 16.0))


def test_two_towers_have_layers_of_their_own():
    """Decay 0.5: two image blocks have 1/4 and 1/2, their embedding 1/8; one text block has 1/2, its embedding 1/4."""
    model = default.get_config().model
    model.update({"towers": 2, "depth": 2})
    model.text.depth = 1
    ones = {depth: np.ones((depth, 2)) for depth in (1, 2)}
    updates = {
        "image_embedding": {"kernel": np.ones(2)}, "image_blocks": {"norm1": {"scale": ones[2]}},
        "text_embedding": {"word": np.ones(2)}, "text_blocks": {"mlp": {"fc1": {"bias": ones[1]}}},
    }  # fmt: skip
    scaled = by_layer(updates, 0.5, block_depths(model))
    np.testing.assert_array_equal(scaled["image_blocks"]["norm1"]["scale"], [[0.25] * 2, [0.5] * 2])
    np.testing.assert_array_equal(scaled["text_blocks"]["mlp"]["fc1"]["bias"], [[0.5] * 2])
    np.testing.assert_array_equal(scaled["image_embedding"]["kernel"], [0.125] * 2)
    np.testing.assert_array_equal(scaled["text_embedding"]["word"], [0.25] * 2)


def test_frozen_blocks_do_not_raise_the_rate_of_the_embedding_below():
    """Decay 0.5 and 12 blocks, all frozen: the embedding has 0.5^13, as if they were trained."""
    updates = {"text_embedding": {"word": np.ones(2)}, "blocks": {"norm": {"scale": np.ones(2)}}}
    alone = by_layer(updates, 0.5, block_depths(default.get_config().model))
    np.testing.assert_array_equal(alone["text_embedding"]["word"], [0.5**13] * 2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layer_decay_scales_the_update_and_weight_decay_with_it(optimizer):
    params = {"blocks": {"norm1": {"scale": jnp.ones((1, 2))}, "fc1": {"kernel": jnp.full((1, 2, 2), 2.0)}},
              "word_head": {"kernel": jnp.full((2, 2), 2.0)}}  # fmt: skip
    gradients = jax.tree.map(lambda x: 0.3 * x, params)
    plain, decayed = default.get_config(), default.get_config()
    for config in (plain, decayed):
        config.optimizer.update({"name": optimizer, "weight_decay": 0.1})
    decayed.optimizer.layer_decay = 0.25
    rates = {"weight": lambda step: 0.1, "bias": lambda step: 0.1}
    one, other = (make_optimizer(config, rates) for config in (plain, decayed))
    full, _ = one.update(gradients, one.init(params), params)
    less, _ = other.update(gradients, other.init(params), params)
    np.testing.assert_allclose(less["blocks"]["fc1"]["kernel"], full["blocks"]["fc1"]["kernel"] * 0.25, rtol=1e-6)
    np.testing.assert_allclose(less["word_head"]["kernel"], full["word_head"]["kernel"], rtol=1e-6)
