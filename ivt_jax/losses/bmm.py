"""Bidirectional mask modelling (IVT section 3.3): what is hidden, and what the model must make of the rest.

*Masked alignment* drops tokens of both modalities; the CMPM is computed on what is left. A dropped token and a token
masked as a key are the same to all others, for nothing but attention mixes tokens, so dropping is a gather of the kept
tokens (`fast`), or a permutation with the kept ones in front and a length (`exact`), both at static shapes.
*Masked reconstruction* hides words and patches of a pair and predicts them from the other modality and from the rest.

Draws are those of one row, from its key, and `jax.vmap` serves many: a row's draw does not depend on the others.
`exact` alone draws for a whole batch.
"""

import jax
import jax.numpy as jnp
import numpy as np


def exact_selection(key: jax.Array, length: jax.Array | int, size: int, ratio: float) -> tuple[jax.Array, jax.Array]:
    """The released draw: one permutation of 1..length-1 for all rows, k ~ U{0..floor(ratio * length)} of it dropped.

    length: tokens of the longest row, at most `size`; may be traced. Returns indices (1, size) int32, 0 (CLS) first and
    the kept ones next, and valid (1, size) bool.
    """
    count_key, order_key = jax.random.split(key)
    # The epsilon mends 0.2 * 5 == 1.0000000149 and 0.2 * 35 == 6.9999998 in float32: floor must see the exact product.
    most = jnp.floor(ratio * length + 1e-4).astype(jnp.int32)
    dropped = jnp.minimum(jax.random.randint(count_key, (), 0, most + 1), length - 1)
    positions = jnp.arange(size)
    scores = jnp.where(positions < length, jax.random.uniform(order_key, (size,)), 2.0).at[0].set(-1.0)
    return jnp.argsort(scores)[None].astype(jnp.int32), (positions < length - dropped)[None]


def fast_selection(key: jax.Array, mask: jax.Array, ratio: float) -> tuple[jax.Array, jax.Array]:
    """A pattern for one row, with the mean of the released draw: floor(ratio / 2 * (n - 1)) of its n tokens dropped.

    mask (N,) bool, True at tokens, which come first. Returns indices (K,) int32 and valid (K,) bool with
    K = N - floor(ratio / 2 * (N - 1)): the sequence is shorter, and so is the time.
    """
    (size,) = mask.shape
    kept_size = size - int(ratio / 2 * (size - 1) + 1e-4)
    length = mask.sum()
    dropped = jnp.floor(ratio / 2 * (length - 1) + 1e-4).astype(jnp.int32)
    scores = jnp.where(mask, jax.random.uniform(key, (size,)), 2.0).at[0].set(-1.0)
    order = jnp.argsort(scores).astype(jnp.int32)
    return order[:kept_size], jnp.arange(kept_size) < length - dropped


def mask_words(
    key: jax.Array, ids: jax.Array, words: jax.Array, *, ratio: float, mask_id: int, vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hides whole words of one row: max(1, round(ratio * words)), 80% as [MASK], 10% as a random token, 10% unchanged.

    ids (L,) int32; words (L,) int32 is the 1-based index of each token's word, 0 at special tokens and padding.
    Returns the corrupted ids (L,), the positions (M,) of the hidden tokens, and their weights (M,): 1 at hidden
    tokens, 0 at fillers. M = L // 2; hidden tokens beyond it stay hidden and are not predicted.
    """
    (length,) = ids.shape
    word_key, kind_key, random_key = jax.random.split(key, 3)
    count = words.max()
    quota = jnp.where(count > 0, jnp.maximum(1, jnp.round(ratio * count)), 0).astype(jnp.int32)
    # The scores of the words that exist, ranked: word w is hidden where its rank is below the quota.
    scores = jax.random.uniform(word_key, (length + 1,))
    exists = (jnp.arange(length + 1) >= 1) & (jnp.arange(length + 1) <= count)
    ranks = jnp.argsort(jnp.argsort(jnp.where(exists, scores, 2.0)))
    hidden = (ranks[words] < quota) & (words > 0)

    kind = jax.random.uniform(kind_key, ids.shape)
    random_ids = jax.random.randint(random_key, ids.shape, 0, vocab_size, jnp.int32)
    replacement = jnp.where(kind < 0.8, mask_id, jnp.where(kind < 0.9, random_ids, ids))
    positions = jnp.argsort(~hidden, stable=True)[: length // 2]
    return jnp.where(hidden, replacement, ids), positions, hidden[positions].astype(jnp.float32)


def mask_patches(key: jax.Array, grid: tuple[int, int], ratio: float, block: int) -> jax.Array:
    """Hides floor(ratio * P) patches of one image, in blocks of block x block -> (P,) bool.

    Blocks serve overlapping patches, whose neighbours would give a single hidden patch away.
    """
    rows, columns = grid
    coarse = (-(-rows // block), -(-columns // block))
    block_key, patch_key = jax.random.split(key)
    scores = jnp.argsort(jax.random.uniform(block_key, (coarse[0] * coarse[1],))).reshape(coarse)
    scores = jnp.repeat(jnp.repeat(scores, block, 0), block, 1)[:rows, :columns].ravel()
    scores = scores + jax.random.uniform(patch_key, scores.shape)  # decides within the last, partly hidden block
    return jnp.argsort(jnp.argsort(scores)) < hidden_count(ratio, rows * columns)


def hidden_count(ratio: float, patches: int) -> int:
    """How many of a row's patches `mask_patches` hides: floor(ratio * patches), of the exact product."""
    return int(ratio * patches + 1e-4)


def hidden_pixels(patch_mask: jax.Array, image_size: tuple[int, int], patch_size: int, stride: int) -> jax.Array:
    """Pixels that no visible patch covers: patch_mask (B, P) -> (B, H, W) float32 of 0 and 1.

    Pixels outside every patch (at the border, where the stride does not fit) count as hidden; no patch predicts them.
    """
    covers = [_coverage(extent, patch_size, stride) for extent in image_size]
    visible = (~patch_mask).astype(jnp.float32).reshape(-1, covers[0].shape[1], covers[1].shape[1])
    return (jnp.einsum("hi,bij,wj->bhw", covers[0], visible, covers[1]) == 0).astype(jnp.float32)


def _coverage(extent: int, patch_size: int, stride: int) -> np.ndarray:
    """(extent, patches) float32: 1 where the patch covers the pixel row (or column)."""
    starts = np.arange((extent - patch_size) // stride + 1) * stride
    offset = np.arange(extent)[:, None] - starts
    return ((offset >= 0) & (offset < patch_size)).astype(np.float32)


def patch_targets(patches: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Pixels (B, P, p * p * 3) normalised within each patch, over all its pixels and channels, float32."""
    centred = patches - patches.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)


def word_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of logits (B, M, V) at targets (B, M), times weights (B, M) -> sum and weight of each row, (B,)."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return (losses * weights).sum(1), weights.sum(1)


def patch_loss(predicted: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared error over (B, M, p * p * 3), times weights of that shape -> sum and weight of each row, (B,)."""
    return (jnp.square(predicted - targets) * weights).sum((1, 2)), weights.sum((1, 2))


def mean_loss(sums: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean over the global batch, of each row's sum and weight; 0 where nothing has weight."""
    return sums.sum() / jnp.maximum(weights.sum(), 1)
