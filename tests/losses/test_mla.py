"""Multi-level alignment: what is stacked into one CMPM."""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ivt_jax.losses.contrastive import cmpm_loss
from ivt_jax.losses.mla import gathered_loss, mla_loss, sharded_mla_loss

BATCH, WIDTH = 6, 5
IDS = np.array([3, 3, 8, 1, 8, 2])


@pytest.fixture(scope="module")
def sides():
    rng = np.random.default_rng(0)
    views, levels = 2 * rng.standard_normal((2, 3, BATCH, WIDTH)).astype(np.float32)
    return list(views), list(levels)


def test_three_levels_are_one_matching_of_all(sides):
    views, levels = sides
    expected = cmpm_loss(np.concatenate(views), np.concatenate(levels), np.concatenate([IDS] * 3))
    np.testing.assert_allclose(mla_loss(views, levels, IDS), expected, rtol=1e-6)


def test_levels_are_each_others_positives(sides):
    views, levels = sides
    apart = np.mean([cmpm_loss(v, t, IDS) for v, t in zip(views, levels, strict=True)])
    assert abs(mla_loss(views, levels, IDS) - apart) > 0.1


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_are_the_mean_over_slices_of_the_batch(sides, groups):
    views, levels = sides
    size = BATCH // groups
    slices = [slice(start, start + size) for start in range(0, BATCH, size)]
    expected = np.mean([mla_loss([v[s] for v in views], [t[s] for t in levels], IDS[s]) for s in slices])
    np.testing.assert_allclose(mla_loss(views, levels, IDS, groups), expected, rtol=1e-6)
    assert abs(mla_loss(views, levels, IDS, groups) - mla_loss(views, levels, IDS)) > 0.1


def test_a_single_view_serves_all_levels(sides):
    views, levels = sides
    np.testing.assert_allclose(mla_loss(views[:1], levels, IDS), mla_loss(views[:1] * 3, levels, IDS), rtol=1e-6)


def test_a_single_level_serves_all_views(sides):
    views, levels = sides
    np.testing.assert_allclose(mla_loss(views, levels[1:2], IDS), mla_loss(views, levels[1:2] * 3, IDS), rtol=1e-6)


def test_one_view_and_one_level_are_plain_cmpm(sides):
    views, levels = sides
    np.testing.assert_allclose(mla_loss(views[:1], levels[:1], IDS), cmpm_loss(views[0], levels[0], IDS), rtol=1e-6)


@pytest.mark.parametrize("views, levels", [(2, 3), (3, 2)])
def test_counts_that_do_not_fit_are_refused(sides, views, levels):
    with pytest.raises(ValueError, match=f"{views} views cannot be matched with {levels} text levels"):
        mla_loss(sides[0][:views], sides[1][:levels], IDS)


# ---- on many devices


PAIRS = 16
MANY_IDS = np.random.default_rng(1).integers(0, 5, PAIRS)  # persons whose pairs lie on several devices


def on_devices(mesh, loss):
    """`loss` of the rows of each device of the mesh, as a function of all rows."""

    def run(views, levels, ids, groups=1):
        own = functools.partial(loss, groups=groups, axes=mesh.axis_names)
        rows = PartitionSpec(mesh.axis_names)
        return jax.shard_map(own, mesh=mesh, in_specs=rows, out_specs=PartitionSpec())(views, levels, ids)

    return run


@pytest.mark.parametrize(
    ("devices", "groups", "views", "levels"),
    [
        (1, 1, 3, 3), (2, 1, 3, 3), (4, 1, 3, 3), (8, 1, 3, 3), (8, 1, 1, 3), (8, 1, 1, 1),
        (1, 2, 3, 3), (2, 4, 3, 3), (8, 2, 3, 3), (8, 8, 3, 3), (8, 2, 3, 1), (4, 4, 1, 1),
    ],
)  # fmt: skip
def test_rows_split_over_devices_give_the_same_loss_and_gradients(devices, groups, views, levels):
    rng = np.random.default_rng(2)
    sides = [list(2 * rng.standard_normal((count, PAIRS, WIDTH)).astype(np.float32)) for count in (views, levels)]
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2 if devices > 2 else 1), ("data", "fsdp"))

    def run(loss):
        return jax.jit(jax.value_and_grad(lambda v, t: loss(v, t, MANY_IDS, groups), argnums=(0, 1)))(*sides)

    expected, of_sides = run(mla_loss)
    for loss in (sharded_mla_loss, functools.partial(gathered_loss, mla_loss)):
        actual, gradients = run(on_devices(mesh, loss))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), gradients, of_sides)


def test_no_device_holds_more_than_its_rows_of_the_similarities():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    side = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    embeddings = [jax.ShapeDtypeStruct((64, WIDTH), np.float32, sharding=side)] * 3

    def shapes(loss):
        run = jax.jit(jax.grad(lambda v, t, ids: loss(v, t, ids), argnums=(0, 1)))
        text = run.lower(embeddings, embeddings, jax.ShapeDtypeStruct((64,), np.int32, sharding=side)).compile()
        return set(re.findall(r"f32\[([\d,]+)\]", text.as_text()))

    whole, split = "192,192", "24,192"
    here = {shape.removeprefix("1,") for shape in shapes(on_devices(mesh, sharded_mla_loss))}
    assert split in here and whole not in here
    assert whole in {shape.removeprefix("1,") for shape in shapes(mla_loss)}
