"""Bidirectional mask modelling (IVT, section 3.3): draws of dropped and hidden tokens, and the reconstruction losses.

*Masked alignment* drops tokens of both modalities before the matching. Only attention mixes tokens, so dropping a token
equals masking it as a key: `fast` gathers the kept tokens, `exact` permutes them to the front and gives a length.
*Masked reconstruction* hides words and patches of a pair and predicts them from the other modality and from the rest.

Functions draw for one row, from its key; use `jax.vmap` for many. Only `exact_selection` draws for a whole batch.
"""

import jax
import jax.numpy as jnp
import numpy as np


def exact_selection(key: jax.Array, length: jax.Array | int, size: int, ratio: float) -> tuple[jax.Array, jax.Array]:
    """Returns indices (1, size) int32, [CLS] and the kept tokens first, and valid (1, size) bool, True at these.

    The released draw: k ~ U{0..floor(ratio * length)} of the tokens 1..length-1 are dropped, the same ones of all rows.
    length: tokens of the longest row, at most `size`; may be traced.
    """
    count_key, order_key = jax.random.split(key)
    # In float32 0.2 * 35 is 6.9999998; the epsilon makes floor see the exact product.
    most = jnp.floor(ratio * length + 1e-4).astype(jnp.int32)
    dropped = jnp.minimum(jax.random.randint(count_key, (), 0, most + 1), length - 1)
    positions = jnp.arange(size)
    scores = jnp.where(positions < length, jax.random.uniform(order_key, (size,)), 2.0).at[0].set(-1.0)
    return jnp.argsort(scores)[None].astype(jnp.int32), (positions < length - dropped)[None]


def fast_selection(
    key: jax.Array, mask: jax.Array, ratio: float, always: tuple[jax.Array | int, ...] = (0,), ordered: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Returns the kept tokens of one row: indices (K,) int32, [CLS] first, and valid (K,) bool, False at padding.

    Drops floor(ratio / 2 * (n - 1)) of n tokens, the mean of the released draw. mask (N,) bool is True at tokens, which
    come first. K = N - floor(ratio / 2 * (N - 1)): the pass is shorter and faster. always: at most two places that are
    never dropped. ordered: the valid indices ascend, as a causal tower needs them.
    """
    (size,) = mask.shape
    kept_size = size - int(ratio / 2 * (size - 1) + 1e-4)
    length = mask.sum()
    dropped = jnp.floor(ratio / 2 * (length - 1) + 1e-4).astype(jnp.int32)
    scores = jnp.where(mask, jax.random.uniform(key, (size,)), 2.0)
    for place in always:
        scores = scores.at[place].set(-1.0)
    order, valid = jnp.argsort(scores).astype(jnp.int32)[:kept_size], jnp.arange(kept_size) < length - dropped
    if ordered:
        order = order[jnp.argsort(jnp.where(valid, order, size))]
    return order, valid


def mask_words(
    key: jax.Array, ids: jax.Array, words: jax.Array, *, ratio: float, mask_id: int, vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hides whole words of one row: max(1, round(ratio * words)), 80% as [MASK], 10% as a random token, 10% unchanged.

    ids (L,) int32; words (L,) int32 is the 1-based index of each token's word, 0 at special tokens and padding.
    Returns the corrupted ids (L,), positions (M,) of hidden tokens, and their weights (M,), 0 at fillers. M = L // 2;
    hidden tokens beyond it stay hidden and are not predicted.
    """
    (length,) = ids.shape
    word_key, kind_key, random_key = jax.random.split(key, 3)
    count = words.max()
    quota = jnp.where(count > 0, jnp.maximum(1, jnp.round(ratio * count)), 0).astype(jnp.int32)
    # Words are ranked by score; word w is hidden if its rank is below the quota.
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
    """Returns (P,) bool, True at floor(ratio * P) hidden patches of one image, in squares of block x block.

    The neighbours of a single hidden patch show its pixels if patches overlap; hence the squares.
    """
    rows, columns = grid
    coarse = (-(-rows // block), -(-columns // block))
    block_key, patch_key = jax.random.split(key)
    scores = jnp.argsort(jax.random.uniform(block_key, (coarse[0] * coarse[1],))).reshape(coarse)
    scores = jnp.repeat(jnp.repeat(scores, block, 0), block, 1)[:rows, :columns].ravel()
    scores = scores + jax.random.uniform(patch_key, scores.shape)  # order within the last, partly hidden square
    return jnp.argsort(jnp.argsort(scores)) < hidden_count(ratio, rows * columns)


def hidden_count(ratio: float, patches: int) -> int:
    """Returns how many patches `mask_patches` hides: floor of the exact ratio * patches."""
    return int(ratio * patches + 1e-4)


def hidden_pixels(patch_mask: jax.Array, image_size: tuple[int, int], patch_size: int, stride: int) -> jax.Array:
    """Returns (B, H, W) float32, 1 at pixels that no visible patch covers, else 0. patch_mask: (B, P) bool.

    Pixels at a border that no patch reaches count as hidden; no patch predicts them.
    """
    covers = [_coverage(extent, patch_size, stride) for extent in image_size]
    visible = (~patch_mask).astype(jnp.float32).reshape(-1, covers[0].shape[1], covers[1].shape[1])
    return (jnp.einsum("hi,bij,wj->bhw", covers[0], visible, covers[1]) == 0).astype(jnp.float32)


def _coverage(extent: int, patch_size: int, stride: int) -> np.ndarray:
    """Returns (extent, patches) float32, 1 where the patch covers the row (or column) of pixels."""
    starts = np.arange((extent - patch_size) // stride + 1) * stride
    offset = np.arange(extent)[:, None] - starts
    return ((offset >= 0) & (offset < patch_size)).astype(np.float32)


def patch_targets(patches: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Normalises pixels (B, P, p * p * 3) within each patch, over all its pixels and channels."""
    centred = patches - patches.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)


def word_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums weighted cross-entropies, and weights, over each row: logits (B, M, V), others (B, M) -> (B,) and (B,)."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return (losses * weights).sum(1), weights.sum(1)


def patch_loss(predicted: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums weighted squared errors, and weights, over each row: arguments (B, M, p * p * 3) -> (B,) and (B,)."""
    return (jnp.square(predicted - targets) * weights).sum((1, 2)), weights.sum((1, 2))


def mean_loss(sums: jax.Array, weights: jax.Array, axes: tuple[str, ...] = ()) -> jax.Array:
    """Returns the weighted mean over all rows, from their sums and weights (B,); 0 if nothing has weight.

    axes: those of the mesh over whose devices the rows are split, inside `jax.shard_map`.
    """
    total, weight = sums.sum(), weights.sum()
    if axes:  # a sum over no axes is not free: with it, XLA held all passes at once on a GPU
        total, weight = jax.lax.psum((total, weight), axes)
    return total / jnp.maximum(weight, 1)
