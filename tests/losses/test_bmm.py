"""Masking plans and reconstruction losses, by hand and against literal loops; dropping, masking, permuting are one."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.losses import bmm
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ivt import IVT

MASK_ID, VOCAB = 4, 1000


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


# ---- masked alignment: exact


@functools.partial(jax.jit, static_argnames="ratio")
def draw_exact(keys, length, ratio):
    """Selections of 40 places for texts of at most `length` tokens, one for each key."""
    indices, valid = jax.vmap(lambda key: bmm.exact_selection(key, length, 40, ratio))(keys)
    return indices[:, 0], valid[:, 0]


def exact_draws(length, ratio, count=3000):
    return [np.asarray(x) for x in draw_exact(keys(count), length, ratio=ratio)]


def test_exact_keeps_each_count_equally_often():
    _, valid = exact_draws(31, 0.2)
    dropped = Counter((31 - valid.sum(1)).tolist())
    assert sorted(dropped) == list(range(7))  # floor(0.2 * 31) = 6
    expected = 3000 / 7
    chi_square = sum((n - expected) ** 2 / expected for n in dropped.values())
    assert chi_square < 22.5  # 6 degrees of freedom: 0.1%


def test_exact_drops_each_position_equally_often_but_never_the_cls():
    indices, valid = exact_draws(31, 0.2)
    assert (indices[:, 0] == 0).all()
    assert valid[:, 0].all()
    kept = np.zeros(40)
    np.add.at(kept, indices[valid], 1)
    assert kept[0] == 3000
    assert (kept[31:] == 0).all()  # beyond the longest row there is nothing to keep
    share = 3 / 30  # on average 3 of the 30 positions after the CLS
    deviation = np.sqrt(3000 * share * (1 - share))
    assert np.abs(kept[1:31] - 3000 * (1 - share)).max() < 5 * deviation


def test_exact_is_a_permutation_with_the_kept_in_front():
    indices, valid = exact_draws(31, 0.2)
    assert (np.sort(indices, axis=1) == np.arange(40)).all()
    assert (np.diff(valid.astype(int), axis=1) <= 0).all()


@pytest.mark.parametrize(
    "ratio, length, most", [(0.2, 4, 0), (0.2, 5, 1), (0.2, 9, 1), (0.2, 35, 7), (0.3, 10, 3), (0.6, 5, 3), (1.0, 3, 2)]
)
def test_exact_drops_at_most_the_floor(ratio, length, most):
    _, valid = exact_draws(length, ratio, 3000)
    assert (length - valid.sum(1)).max() == most


def test_exact_length_may_be_traced():
    selection = jax.jit(lambda n: bmm.exact_selection(jax.random.key(5), n, 40, 0.2))(31)
    for traced, static in zip(selection, bmm.exact_selection(jax.random.key(5), 31, 40, 0.2), strict=True):
        np.testing.assert_array_equal(traced, static)


# ---- masked alignment: fast

LENGTHS = np.array([40, 31, 11, 3, 2])
MASK = np.arange(40) < LENGTHS[:, None]


def draw_fast(keys, mask, ratio):
    """A pattern for each row of the mask."""
    return jax.vmap(functools.partial(bmm.fast_selection, ratio=ratio))(keys, mask)


def test_fast_drops_half_the_ratio_of_each_row():
    for seed in range(20):
        indices, valid = (np.asarray(x) for x in draw_fast(keys(5, seed), MASK, 0.2))
        assert indices.shape == valid.shape == (5, 40 - 3)  # floor(0.1 * 39) = 3
        # floor(0.1 * (n - 1)): 3.9, 3.0, 1.0, 0.2, 0.1
        assert valid.sum(1).tolist() == [37, 28, 10, 3, 2]
        for row, ok, length in zip(indices, valid, LENGTHS, strict=True):
            assert row[0] == 0
            assert ok[0]
            assert len(set(row)) == len(row)
            assert row[ok].max() < length  # no padding among the valid


def test_fast_draws_a_pattern_per_row():
    mask = np.ones((8, 50), bool)
    indices, _ = draw_fast(keys(8), mask, 0.4)
    kept = {frozenset(row.tolist()) for row in np.asarray(indices)}
    assert len(kept) == 8


def test_fast_drops_each_position_equally_often():
    mask = np.ones((3000, 11), bool)
    indices, _ = draw_fast(keys(3000, 1), mask, 0.4)  # 2 of 10
    kept = np.bincount(np.asarray(indices).ravel(), minlength=11)
    assert kept[0] == 3000
    assert np.abs(kept[1:] - 2400).max() < 5 * np.sqrt(3000 * 0.2 * 0.8)


@pytest.mark.parametrize("seed", range(4))
def test_the_draws_of_kept_tokens_never_change(seed):
    """A run that an older version began goes on with the same patterns: the tokens of the least numbers are kept."""
    key = jax.random.key(seed)
    count_key, order_key = jax.random.split(key)
    number = np.asarray(jax.random.uniform(order_key, (40,))).tolist()
    indices, valid = bmm.exact_selection(key, 31, 40, 0.2)
    assert indices[0, :31].tolist() == [0, *sorted(range(1, 31), key=number.__getitem__)]
    assert valid.sum() == 31 - jax.random.randint(count_key, (), 0, 7)  # 0 to floor(0.2 * 31) of them are dropped
    number = np.asarray(jax.random.uniform(key, (40,))).tolist()
    indices, valid = bmm.fast_selection(key, np.arange(40) < 31, 0.4)  # floor(0.2 * 30) of them are dropped
    assert indices[:25].tolist() == [0, *sorted(range(1, 31), key=number.__getitem__)][:25] and valid.sum() == 25


# ---- dropping, masking and permuting are the same to the CLS


@pytest.fixture(scope="module")
def tower():
    config = IVTConfig(
        image_size=(24, 12), patch_size=6, stride=6, width=32, depth=3, num_heads=4, vocab_size=50, max_text_length=16,
        dropout=0.0, drop_path=0.0,
    )  # fmt: skip
    model = IVT(config)
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    return model, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_drop_mask_and_permute_agree(tower, modality):
    model, params = tower
    rng = np.random.default_rng(0)
    if modality == "image":
        inputs, size, lengths = (rng.standard_normal((3, 24, 12, 3)).astype(np.float32),), 9, [9, 9, 9]
    else:
        lengths = [16, 16, 13]
        mask = np.arange(16) < np.array(lengths)[:, None]
        inputs, size = (np.where(mask, rng.integers(5, 50, (3, 16)), 0), mask), 16
    encode = jax.jit(lambda keep: model.apply({"params": params}, *inputs, keep=keep, method=f"encode_{modality}"))

    kept = [np.array([0, *sorted(rng.permutation(np.arange(1, size))[: size - 4].tolist())]) for _ in range(3)]
    gathered = encode((np.stack(kept), None))[:, 0]
    identity = np.tile(np.arange(size), (3, 1))
    masked = encode((identity, np.stack([np.isin(np.arange(size), row) for row in kept])))[:, 0]
    order = np.stack([[*row, *np.setdiff1d(np.arange(size), row)] for row in kept])
    permuted = encode((order, np.broadcast_to(np.arange(size) < len(kept[0]), order.shape)))[:, 0]
    np.testing.assert_allclose(masked, gathered, atol=1e-5)
    np.testing.assert_allclose(permuted, gathered, atol=1e-5)
    assert np.abs(encode(None)[:, 0] - gathered).max() > 1e-2  # the dropped tokens did matter


# ---- reconstruction of words

# Rows: seven words of which the third has three tokens and the fifth two; one word; none. [CLS] first, [SEP] last.
WORDS = np.array([
    [0, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 0, 0, 0],
    [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
], np.int32)  # fmt: skip
IDS = np.where(WORDS > 0, 100 + np.arange(14), 0).astype(np.int32)
IDS[:, 0], IDS[0, 11], IDS[1, 4], IDS[2, 1] = 2, 3, 3, 3


@functools.cache
def word_draws(ratio=0.3, count=2000):
    mask = jax.vmap(functools.partial(bmm.mask_words, ratio=ratio, mask_id=MASK_ID, vocab_size=VOCAB))
    several = keys(3 * count).reshape(count, 3)
    corrupted, positions, weights = jax.jit(jax.vmap(lambda row_keys: mask(row_keys, IDS, WORDS)))(several)
    hidden = np.zeros((count, *IDS.shape), bool)
    draw, row, slot = np.nonzero(weights)
    hidden[draw, row, np.asarray(positions)[draw, row, slot]] = True
    return np.asarray(corrupted), np.asarray(positions), np.asarray(weights), hidden


@pytest.mark.parametrize("ratio, count", [(0.1, 1), (0.3, 2), (0.4, 3)])  # 0.7, 2.1, 2.8 of seven words
def test_words_are_hidden_whole_and_in_the_right_number(ratio, count):
    *_, hidden = word_draws(ratio, 300)
    for draw in hidden:
        words = set(WORDS[0][draw[0]])
        assert len(words) == count
        np.testing.assert_array_equal(draw[0], np.isin(WORDS[0], list(words)))
        np.testing.assert_array_equal(draw[1], WORDS[1] == 1)  # at least one word, all its tokens
        assert not draw[2].any()


def test_each_word_is_hidden_equally_often():
    *_, hidden = word_draws()
    share = hidden[:, 0].mean(0)[WORDS[0] > 0]
    assert np.abs(share - 2 / 7).max() < 5 * np.sqrt(2 / 7 * 5 / 7 / 2000)


def test_special_tokens_and_padding_stay():
    corrupted, *_, hidden = word_draws()
    assert not hidden[:, WORDS == 0].any()
    np.testing.assert_array_equal(corrupted[~hidden], np.broadcast_to(IDS, corrupted.shape)[~hidden])


def test_hidden_tokens_become_masks_random_tokens_or_stay():
    corrupted, *_, hidden = word_draws()
    after, before = corrupted[hidden], np.broadcast_to(IDS, corrupted.shape)[hidden]
    n = len(after)
    for actual, share in (((after == MASK_ID).mean(), 0.8), ((after == before).mean(), 0.1)):
        assert abs(actual - share) < 5 * np.sqrt(share * (1 - share) / n) + 1 / VOCAB
    other = after[(after != MASK_ID) & (after != before)]
    assert other.min() < 30  # random tokens come from the whole vocabulary
    assert other.max() >= VOCAB - 30


def test_random_tokens_are_ids_of_the_vocabulary():
    mask = functools.partial(bmm.mask_words, ratio=1.0, mask_id=9, vocab_size=3)
    corrupted, *_ = jax.vmap(lambda key: mask(key, IDS[0], WORDS[0]))(keys(400))
    drawn = np.asarray(corrupted)[:, WORDS[0] > 0]
    assert set(drawn[drawn < 100].tolist()) == {0, 1, 2, 9}  # the tokens that stay are above 100


@pytest.mark.parametrize("seed", range(8))
def test_the_draws_of_words_never_change(seed):
    """A run that an older version began goes on with the same words: those of the least numbers are hidden."""
    word_key, kind_key, random_key = jax.random.split(jax.random.key(seed), 3)
    number = np.asarray(jax.random.uniform(word_key, (15,))).tolist()
    kind = np.asarray(jax.random.uniform(kind_key, (14,))).tolist()
    random_ids = np.asarray(jax.random.randint(random_key, (14,), 0, VOCAB, jnp.int32)).tolist()
    hidden = sorted(range(1, 8), key=number.__getitem__)[:4]  # 0.6 of seven words: 4.2
    expected = IDS[0].tolist()
    for place, word in enumerate(WORDS[0]):
        if word in hidden:
            rare = random_ids[place] if kind[place] < 0.9 else IDS[0, place]
            expected[place] = MASK_ID if kind[place] < 0.8 else rare
    corrupted, *_ = bmm.mask_words(jax.random.key(seed), IDS[0], WORDS[0], ratio=0.6, mask_id=MASK_ID, vocab_size=VOCAB)
    assert corrupted.tolist() == expected


def test_fillers_have_no_weight_and_positions_do_not_repeat():
    _, positions, weights, hidden = word_draws()
    assert positions.shape == weights.shape == (2000, 3, 7)
    assert set(np.unique(weights)) == {0.0, 1.0}
    assert (weights[:, 2] == 0).all()
    np.testing.assert_array_equal(hidden.sum(2), weights.sum(2))  # no position twice
    assert (np.diff(weights, axis=2) <= 0).all()


def test_words_beyond_half_the_row_are_hidden_and_not_predicted():
    words = np.arange(8, dtype=np.int32)
    corrupted, positions, weights = bmm.mask_words(
        jax.random.key(0), words + 100, words, ratio=1.0, mask_id=MASK_ID, vocab_size=VOCAB
    )
    assert positions.tolist() == [1, 2, 3, 4]
    assert weights.tolist() == [1, 1, 1, 1]
    assert (np.asarray(corrupted)[5:] != words[5:] + 100).any()


def test_word_loss_by_hand():
    # Softmaxes (3/4, 1/4), (1/2, 1/2), (1/5, 4/5) and a filler; targets 0, 1, 1.
    logits = np.log(np.array([[[3, 1], [1, 1]], [[1, 4], [1e6, 1]]], np.float32))
    sums, weights = bmm.word_loss(logits, np.array([[0, 1], [1, 1]]), np.array([[1, 1], [1, 0]], np.float32))
    np.testing.assert_allclose(sums, [-np.log(3 / 4) - np.log(1 / 2), -np.log(4 / 5)], rtol=1e-6)
    np.testing.assert_array_equal(weights, [2, 1])


def test_word_loss_of_bfloat16_logits_is_float32():
    # Softmax of 1000 equal logits: ln 1000 = 6.907755, in bfloat16 6.90625.
    sums, _ = bmm.word_loss(jnp.zeros((1, 1, 1000), jnp.bfloat16), np.array([[5]]), np.ones((1, 1), np.float32))
    assert sums.dtype == jnp.float32
    np.testing.assert_allclose(sums, [np.log(1000)], rtol=1e-6)


def test_the_mean_is_of_all_rows_together():
    # Not the mean of the rows' means, which would be (2 + 8) / 2.
    np.testing.assert_allclose(bmm.mean_loss(np.array([6.0, 8.0]), np.array([3.0, 1.0])), 14 / 4)
    assert bmm.mean_loss(np.zeros(2), np.zeros(2)) == 0


# ---- reconstruction of patches


def draw_patches(keys, grid, ratio, block):
    """The patches hidden of an image for each key."""
    return np.asarray(jax.vmap(lambda key: bmm.mask_patches(key, grid, ratio, block))(keys))


@pytest.mark.parametrize("grid, ratio, count", [((4, 3), 0.5, 6), ((5, 3), 0.5, 7), ((4, 5), 0.3, 6), ((2, 2), 0.2, 0)])
@pytest.mark.parametrize("block", [1, 2])
def test_the_share_of_hidden_patches_is_exact(grid, ratio, count, block):
    mask = draw_patches(keys(16), grid, ratio, block)
    assert mask.shape == (16, grid[0] * grid[1])
    assert (mask.sum(1) == count).all()
    assert count == 0 or len({row.tobytes() for row in mask}) > 5  # a pattern per row


def test_patches_are_hidden_in_blocks():
    mask = draw_patches(keys(64), (6, 5), 0.5, 2).reshape(64, 6, 5)
    for row in mask:
        blocks = [row[i : i + 2, j : j + 2] for i in (0, 2, 4) for j in (0, 2, 4)]
        assert sum(b.any() and not b.all() for b in blocks) <= 1  # the last block makes the count exact


@pytest.mark.parametrize("grid", [(5, 3), (4, 6), (3, 7)])
def test_the_draws_of_patches_never_change(grid):
    """A run that an older version began goes on with the same masks. One number is drawn for each block, which puts
    the blocks in order, and one for each patch, which decides within the last block."""
    rows, columns = grid
    block_key, patch_key = jax.random.split(jax.random.key(9))
    across = (columns + 1) // 2
    of_blocks = np.asarray(jax.random.uniform(block_key, ((rows + 1) // 2 * across,))).tolist()
    of_patches = np.asarray(jax.random.uniform(patch_key, (rows * columns,))).tolist()
    places = sorted(range(len(of_blocks)), key=of_blocks.__getitem__)
    order = sorted(
        range(rows * columns),
        key=lambda p: (places[p // columns // 2 * across + p % columns // 2], of_patches[p]),
    )
    hidden = bmm.mask_patches(jax.random.key(9), grid, 0.5, 2)
    assert np.flatnonzero(hidden).tolist() == sorted(order[: rows * columns // 2])


def test_each_patch_is_hidden_equally_often():
    mask = draw_patches(keys(3000, 2), (4, 4), 0.5, 2)
    assert np.abs(mask.mean(0) - 0.5).max() < 5 * np.sqrt(0.25 / 3000)


def test_of_a_block_that_is_hidden_in_part_each_patch_is_hidden_equally_often():
    # The image is one block of 2 x 2 patches. Two of the four are hidden, each pair equally often.
    mask = draw_patches(keys(3000, 3), (2, 2), 0.5, 2)
    pairs = Counter(tuple(np.flatnonzero(row).tolist()) for row in mask)
    assert len(pairs) == 6
    assert max(abs(count - 500) for count in pairs.values()) < 5 * np.sqrt(3000 * 1 / 6 * 5 / 6)


@pytest.mark.parametrize("size, patch, stride", [((24, 12), 6, 6), ((22, 13), 6, 4), ((27, 14), 6, 6)])
def test_hidden_pixels_are_those_no_visible_patch_covers(size, patch, stride):
    rows, columns = ((extent - patch) // stride + 1 for extent in size)
    mask = np.random.default_rng(0).random((5, rows * columns)) < 0.6
    expected = np.ones((5, *size))
    for b in range(5):
        for p in range(rows * columns):
            if not mask[b, p]:
                top, left = p // columns * stride, p % columns * stride
                expected[b, top : top + patch, left : left + patch] = 0
    actual = bmm.hidden_pixels(mask, size, patch, stride)
    np.testing.assert_array_equal(actual, expected)
    if size != (24, 12):  # a border that no patch reaches
        assert (np.asarray(actual)[:, :, -1] == 1).all()


def test_patch_targets_by_hand():
    # Mean 3, variance 5 over pixels and channels together; a constant patch gives zeros, not noise.
    targets = bmm.patch_targets(jnp.array([[[0.0, 2.0, 4.0, 6.0], [9.0, 9.0, 9.0, 9.0]]]))
    np.testing.assert_allclose(targets[0, 0], np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-5)
    np.testing.assert_array_equal(targets[0, 1], np.zeros(4))


def test_patch_loss_by_hand():
    predicted = np.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [1.0, 1.0]]])
    targets = np.array([[[0.0, 2.0], [1.0, 9.0]], [[5.0, 3.0], [1.0, 1.0]]])
    weights = np.array([[[1, 1], [1, 0]], [[0, 1], [0, 0]]])
    np.testing.assert_allclose(bmm.patch_loss(predicted, targets, weights), [[1 + 0 + 4, 9], [3, 1]])


def test_hidden_pixels_do_not_leak_into_the_input():
    config = IVTConfig(image_size=(22, 13), patch_size=6, stride=4, width=16, depth=2, num_heads=2, vocab_size=20)
    model = IVT(config)
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    encode = jax.jit(functools.partial(model.apply, {"params": params}, method="encode_joint"))
    mask = draw_patches(keys(2, 1), config.grid, 0.5, 2)
    hidden = np.asarray(bmm.hidden_pixels(mask, config.image_size, 6, 4))[..., None] == 1
    assert hidden[:, :22, :10].any()
    rng = np.random.default_rng(0)
    images, others = rng.standard_normal((2, 2, 22, 13, 3)).astype(np.float32)
    ids = np.array([[2, 7, 3], [2, 9, 3]])

    def tokens(images, patch_mask):
        return np.concatenate(encode(images, ids, ids > 0, patch_mask=patch_mask), axis=1)

    np.testing.assert_array_equal(tokens(np.where(hidden, others, images), mask), tokens(images, mask))
    assert np.abs(tokens(np.where(hidden, images, others), mask) - tokens(images, mask)).max() > 1e-3
    assert np.abs(tokens(np.where(hidden, others, images), None) - tokens(images, None)).max() > 1e-3
