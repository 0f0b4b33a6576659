"""The identity loss against a float64 version, by hand, and its numerical gradient."""

import jax
import numpy as np

from ivt_jax.losses.identity import identity_losses, init_classifier

IDS = np.array([2, 0, 2, 4])


def random_case():
    rng = np.random.default_rng(0)
    views, levels = rng.standard_normal((2, 4, 6)), rng.standard_normal((3, 4, 6))
    return {"kernel": rng.standard_normal((6, 5)), "bias": rng.standard_normal(5)}, views, levels


def slow(classifier, views, levels):
    """For each pair, the mean over views of an image's cross-entropy and over levels of a text's; then their mean."""
    losses = np.zeros(len(IDS))
    for side in (views, levels):
        for embeddings in side:
            for row, person in enumerate(IDS):
                logits = [embeddings[row] @ classifier["kernel"][:, c] + classifier["bias"][c] for c in range(5)]
                losses[row] -= (logits[person] - np.log(np.exp(logits).sum())) / len(side) / 2
    return losses


def fast(classifier, views, levels):
    return identity_losses(*jax.tree.map(np.float32, (classifier, list(views), list(levels))), IDS)


def test_is_the_float64_version():
    np.testing.assert_allclose(fast(*random_case()), slow(*random_case()), rtol=1e-5)


def test_gradient_is_the_central_difference():
    case, step = random_case(), 1e-5
    ours = jax.jit(jax.grad(lambda *case: fast_mean(*case), argnums=(0, 1, 2)))(*jax.tree.map(np.float32, case))
    for actual, array in zip(jax.tree.leaves(ours), jax.tree.leaves(case), strict=True):
        numerical = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            before, ends = array[index], []
            for sign in (1, -1):
                array[index] = before + sign * step
                ends.append(slow(*case).mean())
            array[index] = before
            numerical[index] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(actual, numerical, atol=2e-5 * np.abs(numerical).max())


def fast_mean(classifier, views, levels):
    return identity_losses(classifier, list(views), list(levels), IDS).mean()


def test_by_hand():
    """Logits (ln 3, 0) for the image and (0, 0) for the text: (ln 4/3 + ln 2) / 2 for person 0."""
    classifier = {"kernel": np.array([[np.log(3), 0.0]]), "bias": np.zeros(2)}
    loss = identity_losses(classifier, [np.ones((1, 1))], [np.zeros((1, 1))], np.array([0]))
    np.testing.assert_allclose(loss, [(np.log(4 / 3) + np.log(2)) / 2], rtol=1e-6)


def test_the_classifier_begins_small():
    classifier = init_classifier(jax.random.key(0), 64, 500)
    assert classifier["kernel"].shape == (64, 500) and not np.any(classifier["bias"])
    # Of n = 32,000 numbers: the deviation within 5 / sqrt(2 n) = 2% of 0.001.
    np.testing.assert_allclose(np.std(classifier["kernel"]), 0.001, rtol=0.02)
