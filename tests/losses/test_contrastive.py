"""CMPM against a literal float64 version, by hand, and by its numerical gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.losses.contrastive import cmpm_loss


def slow_cmpm(v, t, ids, order=2):
    """REFERENCE, term by term; `order` is the norm in q."""
    v, t = np.asarray(v, np.float64), np.asarray(t, np.float64)
    total = 0.0
    for query, key in ((v, t), (t, v)):
        for i in range(len(ids)):
            y = np.array([1.0 if ids[i] == other else 0.0 for other in ids])
            logits = np.array([query[i] @ k / np.sqrt(k @ k) for k in key])
            p = np.exp(logits - logits.max())
            p /= p.sum()
            q = y / (y**order).sum() ** (1 / order)
            total += sum(p[j] * (np.log(p[j]) - np.log(q[j] + 1e-8)) for j in range(len(ids))) / len(ids)
    return total


def random_case(seed=0, n=10, width=6, scale=3.0):
    rng = np.random.default_rng(seed)
    v, t = scale * rng.standard_normal((2, n, width)).astype(np.float32)
    return v, t, rng.integers(0, 4, n)


@pytest.mark.parametrize("seed", range(3))
def test_is_the_literal_float64_version(seed):
    v, t, ids = random_case(seed)
    assert len(set(ids.tolist())) < len(ids)
    np.testing.assert_allclose(cmpm_loss(v, t, ids), slow_cmpm(v, t, ids), rtol=1e-5)


def test_two_pairs_by_hand():
    # Image i points along axis i with length ln 3, text i along axis i with length ln 2: each row of p is (3/4, 1/4)
    # for the images and (2/3, 1/3) for the texts, q is the identity.
    v, t = np.log(3) * np.eye(2), np.log(2) * np.eye(2)
    i2t = 3 / 4 * (np.log(3 / 4) - 0) + 1 / 4 * (np.log(1 / 4) - np.log(1e-8))
    t2i = 2 / 3 * (np.log(2 / 3) - 0) + 1 / 3 * (np.log(1 / 3) - np.log(1e-8))
    np.testing.assert_allclose(cmpm_loss(v, t, jnp.array([7, 9])), i2t + t2i, rtol=1e-6)


def test_target_has_the_l2_norm_and_the_loss_can_be_negative():
    # One person n times, all logits equal: p = 1/n, q = 1/sqrt(n), so each direction is log(1/n) - log(1/sqrt(n)).
    # With the L1 norm q would be 1/n and the loss 0.
    v, t = np.ones((4, 3)), np.ones((4, 3))
    np.testing.assert_allclose(cmpm_loss(v, t, np.zeros(4, int)), 2 * (np.log(1 / 4) - np.log(1 / 2)), rtol=1e-5)
    v, t, ids = random_case()
    assert abs(slow_cmpm(v, t, ids) - slow_cmpm(v, t, ids, order=1)) > 0.1


def assert_central_differences(gradients, loss, v, t, step=1e-5):
    """The gradients of v and t are the central differences of loss(v, t) in float64."""
    for side in (0, 1):
        numerical = np.zeros(v.shape)
        for index in np.ndindex(*v.shape):
            ends = []
            for sign in (1, -1):
                arguments = [v.astype(np.float64), t.astype(np.float64)]
                arguments[side][index] += sign * step
                ends.append(loss(*arguments))
            numerical[index] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradients[side], numerical, atol=2e-5 * np.abs(numerical).max())


def test_gradient_is_the_central_difference():
    v, t, ids = random_case(n=6, width=4)
    ours = jax.grad(cmpm_loss, argnums=(0, 1))(v, t, ids)
    assert_central_differences(ours, lambda v, t: slow_cmpm(v, t, ids), v, t)


def test_bfloat16_embeddings_are_matched_in_float32():
    v, t, ids = random_case(scale=8.0)
    v, t = jnp.asarray(v, jnp.bfloat16), jnp.asarray(t, jnp.bfloat16)
    loss = cmpm_loss(v, t, ids)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, slow_cmpm(v.astype(jnp.float32), t.astype(jnp.float32), ids), rtol=1e-5)


def test_large_logits_stay_finite():
    v, t, ids = random_case(scale=300.0)
    value, gradient = jax.value_and_grad(cmpm_loss)(v, t, ids)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
