"""The four losses against literal float64 versions, their numerical gradients, and split over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ivt_jax.losses.contrastive import cmpm_loss
from ivt_jax.losses.matching import LOSSES, NORMALISE, TAL_MARGIN, query_losses
from ivt_jax.losses.mla import gathered_loss, mla_loss, pair_levels, sharded_mla_loss
from tests.losses.test_contrastive import assert_central_differences

TEMPERATURES = {"cmpm": 0.7, "sdm": 0.2, "itc": 0.3, "tal": 0.15}


def slow_similarities(query, key, name, normalise):
    """Products of the rows, of length 1 where REFERENCE has cosines, or the CMPM's key projection."""
    both = normalise == "both" or (normalise == "published" and name != "cmpm")
    one = both or normalise == "published"

    def unit(x):
        return x / np.sqrt((x**2).sum())

    return [[(unit(q) if both else q) @ (unit(k) if one else k) for k in key] for q in query]


def slow_loss(name, v, t, ids, temperature=1.0, normalise="published", weights=None):
    """REFERENCE, sections 3 and 8, loop by loop. weights: those of TAL, of each direction; None computes them."""
    v, t = np.asarray(v, np.float64), np.asarray(t, np.float64)
    total, count = 0.0, len(ids)
    for direction, (query, key) in enumerate(((v, t), (t, v))):
        table = slow_similarities(query, key, name, normalise)
        for i in range(count):
            s = np.array(table[i])
            y = np.array([float(ids[i] == other) for other in ids])
            e = np.exp((s - s.max()) / temperature)
            p = e / e.sum()
            if name == "tal":
                own = weights[direction][i] if weights else e * y / (e * y).sum()
                negatives = sum(np.exp(s[j] / temperature) for j in range(count) if not y[j])
                far = temperature * np.log(negatives) if negatives else -np.inf
                total += max(0.0, TAL_MARGIN - own @ s + far)
            elif name == "itc":
                total -= sum(y[j] / y.sum() * np.log(p[j]) for j in range(count)) / count
            else:
                q = y / (np.sqrt((y**2).sum()) if name == "cmpm" else y.sum())
                total += sum(p[j] * (np.log(p[j]) - np.log(q[j] + 1e-8)) for j in range(count)) / count
    return total


def slow_tal_weights(v, t, ids, temperature, normalise="published"):
    found = []
    for query, key in ((v, t), (t, v)):
        s = np.array(slow_similarities(np.float64(query), np.float64(key), "tal", normalise)) / temperature
        e = np.exp(s) * (ids[:, None] == ids[None, :])
        found.append(e / e.sum(1, keepdims=True))
    return found


def fast_loss(name, v, t, ids, temperature=1.0, normalise="published"):
    scale = None if temperature == 1 else 1 / temperature
    return mla_loss([v], [t], ids, losses=query_losses(name, normalise), scale=scale)


def random_case(seed=0, n=10, width=6, scale=1.5):
    rng = np.random.default_rng(seed)
    v, t = scale * rng.standard_normal((2, n, width)).astype(np.float32)
    return v, t, rng.integers(0, 4, n)


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("name", LOSSES)
def test_is_the_literal_float64_version(name, normalise):
    for seed, temperature in ((0, 1.0), (1, TEMPERATURES[name])):
        v, t, ids = random_case(seed)
        assert len(set(ids.tolist())) < len(ids)
        expected = slow_loss(name, v, t, ids, temperature, normalise)
        np.testing.assert_allclose(fast_loss(name, v, t, ids, temperature, normalise), expected, rtol=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_central_difference(name):
    v, t, ids = random_case(n=6, width=4)
    temperature, step = TEMPERATURES[name], 1e-5
    weights = slow_tal_weights(v, t, ids, temperature)  # TAL does not differentiate them
    run = jax.grad(lambda v, t, tau: fast_loss(name, v, t, ids, tau), argnums=(0, 1, 2))
    *ours, of_temperature = run(v, t, temperature)

    def slow(v, t, tau):
        return slow_loss(name, v, t, ids, tau, weights=weights)

    assert_central_differences(ours, lambda v, t: slow(v, t, temperature), v, t, step)
    ends = [slow(v, t, temperature + sign * step) for sign in (1, -1)]
    np.testing.assert_allclose(of_temperature, (ends[0] - ends[1]) / (2 * step), rtol=1e-3)


@pytest.mark.parametrize("groups", [1, 3])
def test_cmpm_as_published_is_cmpm_loss_to_the_bit(groups):
    """As the matching was before it had a choice of losses."""
    v, t, ids = random_case(3, n=12, scale=3.0)

    def before(v, t):
        return jax.vmap(cmpm_loss)(*pair_levels([v], [t], ids, groups)).mean()

    run = jax.jit(jax.value_and_grad(lambda loss, v, t: loss(v, t), argnums=(1, 2)), static_argnums=0)
    actual = run(lambda v, t: mla_loss([v], [t], ids, groups), v, t)
    jax.tree.map(np.testing.assert_array_equal, actual, run(before, v, t))


def test_two_pairs_by_hand():
    """Cosines 1 for the pair and 0 for the other, temperature 1 / ln 3: p = (3/4, 1/4) in every row."""
    v, t, ids = 5 * np.eye(2), 7 * np.eye(2), jnp.array([7, 9])
    tau = 1 / np.log(3)
    sdm = 2 * (3 / 4 * np.log(3 / 4) + 1 / 4 * (np.log(1 / 4) - np.log(1e-8)))
    np.testing.assert_allclose(fast_loss("sdm", v, t, ids, tau), sdm, rtol=1e-5)
    np.testing.assert_allclose(fast_loss("itc", v, t, ids, tau), -2 * np.log(3 / 4), rtol=1e-5)
    # The only negative has similarity 0: m - 1 + tau ln 1 is below 0. With the pairs exchanged it is m - 0 + 1.
    assert fast_loss("tal", v, t, ids, tau) == 0
    np.testing.assert_allclose(fast_loss("tal", v, t[::-1], ids, tau), 2 * 2 * (0.1 + 1), rtol=1e-5)


def test_the_target_of_one_person_is_spread_over_all_its_pairs():
    """One person n times: p is the target where all are equally similar, so SDM is 0 and ITC the log of n."""
    v, t, ids = np.ones((4, 3)), np.ones((4, 3)), np.zeros(4, int)
    np.testing.assert_allclose(fast_loss("sdm", v, t, ids, 0.02), 0, atol=1e-5)
    np.testing.assert_allclose(fast_loss("itc", v, t, ids, 0.02), 2 * np.log(4), rtol=1e-5)


def test_tal_of_one_person_is_0_and_so_is_its_gradient():
    v, t, _ = random_case(n=4)
    value, gradients = jax.value_and_grad(lambda v, t: fast_loss("tal", v, t, np.zeros(4, int), 0.1), (0, 1))(v, t)
    assert value == 0 and not np.any(gradients)


@pytest.mark.parametrize("name", ["sdm", "itc", "tal"])
def test_lengths_count_only_where_nothing_is_normalised(name):
    v, t, ids = random_case()
    longer = 3 * v, 0.5 * t
    np.testing.assert_allclose(fast_loss(name, *longer, ids, 0.3), fast_loss(name, v, t, ids, 0.3), rtol=1e-4)
    unlike = fast_loss(name, *longer, ids, 0.3, "neither") - fast_loss(name, v, t, ids, 0.3, "neither")
    assert abs(unlike) > 0.05


@pytest.mark.parametrize("name", LOSSES)
def test_small_temperatures_and_large_embeddings_stay_finite(name):
    v, t, ids = random_case(scale=100.0)
    value, gradients = jax.value_and_grad(lambda v, t: fast_loss(name, v, t, ids, 0.01), (0, 1))(v, t)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_embeddings_are_matched_in_float32():
    v, t, ids = random_case(scale=8.0)
    v, t = jnp.asarray(v, jnp.bfloat16), jnp.asarray(t, jnp.bfloat16)
    loss = fast_loss("sdm", v, t, ids, 0.1)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, slow_loss("sdm", np.float32(v), np.float32(t), ids, 0.1), rtol=1e-4)


# ---- levels, groups and devices

PAIRS, WIDTH = 16, 5
MANY_IDS = np.random.default_rng(1).integers(0, 5, PAIRS)  # persons whose pairs lie on several devices


@pytest.mark.parametrize("name", LOSSES)
def test_levels_are_one_batch_and_groups_are_batches_of_their_own(name):
    rng = np.random.default_rng(2)
    views, levels = rng.standard_normal((2, 3, PAIRS, WIDTH)).astype(np.float32)
    losses, tau = query_losses(name), TEMPERATURES[name]
    halves = [slice(0, 8), slice(8, 16)]
    parts = [
        slow_loss(name, *(np.concatenate(side[:, s]) for side in (views, levels)), np.tile(MANY_IDS[s], 3), tau)
        for s in halves
    ]
    actual = mla_loss(list(views), list(levels), MANY_IDS, 2, losses=losses, scale=1 / tau)
    np.testing.assert_allclose(actual, np.mean(parts), rtol=2e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("devices", "groups", "views", "levels"),
    [(1, 1, 1, 3), (2, 4, 3, 3), (4, 2, 1, 1), (8, 1, 3, 1)],
)
def test_rows_split_over_devices_give_the_same_loss_and_gradients(name, devices, groups, views, levels):
    rng = np.random.default_rng(2)
    sides = [list(rng.standard_normal((count, PAIRS, WIDTH)).astype(np.float32)) for count in (views, levels)]
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2 if devices > 2 else 1), ("data", "fsdp"))
    rows = PartitionSpec(mesh.axis_names)

    def whole(v, t, scale):
        return mla_loss(v, t, MANY_IDS, groups, losses=query_losses(name), scale=scale)

    def split(matching, v, t, scale):
        own = functools.partial(matching, groups=groups, axes=mesh.axis_names, losses=query_losses(name))

        def run(v, t, ids, scale):
            return own(v, t, ids, scale=jax.lax.pcast(scale, mesh.axis_names, to="varying"))

        specs = (rows, rows, rows, PartitionSpec())
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(v, t, MANY_IDS, scale)

    def gradients(loss):
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*sides, 1 / TEMPERATURES[name])

    expected, wanted = gradients(whole)
    for matching in (sharded_mla_loss, functools.partial(gathered_loss, mla_loss)):
        actual, got = gradients(functools.partial(split, matching))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), got, wanted)
