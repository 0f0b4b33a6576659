"""Image-text matching against float64: the probabilities of the draw, what is never drawn, and the loss."""

import jax
import numpy as np

from ivt_jax.losses.itm import draw_negatives, init_classifier, matching_losses


def slow_probabilities(similarities, ids):
    """Of each query: softmax over all keys, plus 1e-4, 0 for its own person, divided by the sum."""
    rows = []
    for i, row in enumerate(np.float64(similarities)):
        e = [np.exp(x - max(row)) for x in row]
        p = np.array([0.0 if ids[j] == ids[i] else e[j] / sum(e) + 1e-4 for j in range(len(row))])
        rows.append(p / p.sum())
    return np.array(rows)


def drawn(similarities, ids, times):
    """(times, m): independent draws."""
    same = ids[:, None] == ids[None, :]
    keys = jax.random.split(jax.random.key(3), (times, len(ids)))
    return np.asarray(jax.jit(jax.vmap(lambda keys: draw_negatives(keys, similarities, same)))(keys))


def test_the_draw_has_the_probabilities_of_the_release():
    """A chi-square test of each row: below the 99.9% point of 6 keys less 1, which is 20.5, for this seed."""
    ids = np.array([0, 1, 1, 2, 3, 4, 5])
    similarities = 1.5 * np.random.default_rng(0).standard_normal((7, 7)).astype(np.float32)
    times = 4000
    expected = slow_probabilities(similarities, ids)
    draws = drawn(similarities, ids, times)
    for row in range(7):
        counts = np.bincount(draws[:, row], minlength=7)
        allowed = ids != ids[row]
        assert counts[~allowed].sum() == 0
        mean = times * expected[row, allowed]
        assert mean.min() > 5  # else the statistic is not chi-square
        assert ((counts[allowed] - mean) ** 2 / mean).sum() < 20.5


def test_a_person_s_own_is_never_drawn_however_similar():
    ids = np.array([0, 0, 1, 2])
    similarities = np.where(ids[:, None] == ids[None, :], 80.0, 0.0).astype(np.float32)
    draws = drawn(similarities, ids, 500)
    assert (ids[draws] != ids).all()
    found = {tuple(sorted(set(column.tolist()))) for column in draws.T}
    assert found == {(2, 3), (0, 1, 3), (0, 1, 2)}  # only FLOOR is left


def test_without_another_person_the_draw_is_a_row_of_the_batch():
    ids = np.zeros(3, int)
    assert set(drawn(np.zeros((3, 3), np.float32), ids, 20).ravel().tolist()) == {0}


def test_the_floor_is_that_of_the_release():
    """The softmax gives two other persons 0.0001 and 0, and each gets 0.0001 more: they are drawn 2 to 1."""
    similarities = np.tile(np.log([1.0, 1e-4, 1e-30]).astype(np.float32), (3, 1))
    draws = drawn(similarities, np.array([0, 1, 2]), 4000)[:, 0]
    assert abs((draws == 1).mean() - 2 / 3) < 0.025  # 3 deviations


def slow_losses(classifier, tokens):
    losses = []
    for row in np.float64(tokens):
        total = 0.0
        for number, token in enumerate(row):
            logits = [token @ classifier["kernel"][:, c] + classifier["bias"][c] for c in (0, 1)]
            total -= logits[1 if number == 0 else 0] - np.log(np.exp(logits).sum())
        losses.append(total)
    return np.array(losses)


def test_is_the_float64_version_and_its_gradient_the_central_difference():
    rng = np.random.default_rng(1)
    case = {"kernel": rng.standard_normal((4, 2)), "bias": rng.standard_normal(2)}, rng.standard_normal((3, 3, 4))
    as_float32 = jax.tree.map(np.float32, case)
    np.testing.assert_allclose(matching_losses(*as_float32), slow_losses(*case), rtol=1e-5)
    ours = jax.jit(jax.grad(lambda *case: matching_losses(*case).sum(), argnums=(0, 1)))(*as_float32)
    for actual, array in zip(jax.tree.leaves(ours), jax.tree.leaves(case), strict=True):
        numerical = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            before, ends = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = before + step
                ends.append(slow_losses(*case).sum())
            array[index] = before
            numerical[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(actual, numerical, atol=2e-5 * np.abs(numerical).max())


def test_by_hand():
    """Logits (0, ln 3) for the positive and one negative, (0, 0) for the other: ln 4/3 + ln 4 + ln 2."""
    tokens = np.array([[[1.0], [1.0], [0.0]]])
    loss = matching_losses({"kernel": np.array([[0.0, np.log(3)]]), "bias": np.zeros(2)}, tokens)
    np.testing.assert_allclose(loss, [np.log(4 / 3) + np.log(4) + np.log(2)], rtol=1e-6)


def test_the_classifier_begins_small():
    classifier = init_classifier(jax.random.key(0), 8000)
    assert classifier["kernel"].shape == (8000, 2) and not np.any(classifier["bias"])
    # Of n = 16,000 numbers: the deviation within 5 / sqrt(2 n) = 3% of 0.02.
    np.testing.assert_allclose(np.std(classifier["kernel"]), 0.02, rtol=0.03)
