"""The objective of a batch: the forward passes of the tower and the weighted sum of its losses.

total = mla.weight * CMPM(levels, views, after masked alignment) + bmm.word_weight * words + bmm.patch_weight * patches

What is drawn for a row follows from the step's key and the row's number in the global batch: any part of the batch,
encoded by itself, is encoded as within the whole.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ivt_jax.encoding.images import erase, normalise
from ivt_jax.losses import bmm
from ivt_jax.losses.mla import mla_loss
from ivt_jax.models.embeddings import extract_patches
from ivt_jax.models.ivt import IVT, PAD_ID, Selection
from ivt_jax.training.hyperparameters import is_on


class Keys(NamedTuple):
    """What the draws of a step follow from: noise, kept tokens, hidden words and patches, and each pass's dropout."""

    erase: jax.Array
    align: jax.Array
    hide: jax.Array
    image: jax.Array
    text: jax.Array
    joint: jax.Array


class Encoded(NamedTuple):
    """What rows of the batch give to the objective, and nothing but they: b of them, of which r are reconstructed.

    views, texts: embeddings (b, D) for each view and level, none where nothing is matched; sums: for each term of the
    reconstruction its sums and weights (r,).
    """

    views: list[jax.Array]
    texts: list[jax.Array]
    sums: dict[str, tuple[jax.Array, jax.Array]]


# Embeddings of views and of levels, the rows' persons (B,), groups -> a loss; see ivt_jax/losses/mla.py.
Matching = Callable[[list[jax.Array], list[jax.Array], jax.Array, int], jax.Array]


def objective(
    model: IVT,
    params: Any,
    batch: dict[str, Any],
    key: jax.Array,
    config: Any,
    mask_id: int,
    matching: Matching = mla_loss,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one global batch (see input_pipeline/pipeline.py for its arrays) -> (total, every term by itself).

    A term whose weight is 0 is not computed. The negatives of the matching are the global batch, however it is sharded.
    """
    encode = make_encode(model, batch, key, config, mask_id)
    return combine(encode(params, *numbered(batch, config)), batch["person_ids"], config, matching)


def numbered(batch: dict[str, Any], config: Any) -> tuple[Any, Any]:
    """The batch's arrays with the rows' numbers, and those to reconstruct, if any: what `encode` is given."""
    pairs = {name: batch[name] for name in ("images", "erase", "text")} | {"rows": jnp.arange(len(batch["images"]))}
    if not (is_on(config.bmm.word_weight) or is_on(config.bmm.patch_weight)):
        return pairs, {}
    chosen = {
        "rows": pairs["rows"], "images": batch["images"][:, 0], "erase": batch["erase"][:, 0],
        "ids": batch["text"]["sentence"], "words": batch["words"],
    }  # fmt: skip
    # Evenly spaced: more persons. A reshape, not a gather of indices: rows stay on the device that holds them.
    return pairs, {name: x.reshape(config.bmm.rows or len(x), -1, *x.shape[1:])[:, 0] for name, x in chosen.items()}


def make_encode(
    model: IVT, batch: dict[str, Any], key: jax.Array, config: Any, mask_id: int
) -> Callable[[Any, Any, Any], Encoded]:
    """encode(params, pairs, chosen) -> Encoded, of any rows of the two that `numbered` gives of this batch.

    What is drawn once for the whole batch is drawn here.
    """
    keys = Keys(*jax.random.split(key, len(Keys._fields)))
    of_images = of_texts = None
    if is_on(config.mla.weight):
        of_images, of_texts = exact_patterns(
            model, [batch["text"][name] for name in config.mla.levels], keys.align, config.bmm
        )

    def encode(params: Any, pairs: Any, chosen: Any) -> Encoded:
        views, texts, sums = [], [], {}
        if is_on(config.mla.weight):
            levels = [pairs["text"][name] for name in config.mla.levels]
            views = encode_views(model, params, pairs["rows"], pairs["images"], pairs["erase"], keys, of_images, config)
            texts = encode_levels(model, params, pairs["rows"], levels, keys, of_texts, config)
        if chosen:
            sums = reconstruction(
                model, params, chosen["rows"], chosen["images"], chosen["erase"], chosen["ids"], chosen["words"], keys,
                config, mask_id,
            )  # fmt: skip
        return Encoded(views, texts, sums)

    return encode


def combine(
    encoded: Encoded, person_ids: jax.Array, config: Any, matching: Matching
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the whole batch from what its rows gave -> (total, every term by itself)."""
    terms = {name: bmm.mean_loss(*of_rows) for name, of_rows in encoded.sums.items()}
    if encoded.views:
        terms = {"mla": matching(encoded.views, encoded.texts, person_ids, config.mla.groups)} | terms
    weights = {"mla": config.mla.weight, "words": config.bmm.word_weight, "patches": config.bmm.patch_weight}
    total = sum(weights[name] * value for name, value in terms.items())
    return total, {"loss": total, **terms}


def row_keys(key: jax.Array, rows: jax.Array, count: int = 1) -> jax.Array:
    """A key for each of the `count` views or levels of each row, row by row: rows (b,) int32 -> (b * count,)."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(fold(key, rows), jnp.arange(count)).reshape(-1)


def exact_patterns(
    model: IVT, levels: list[jax.Array], key: jax.Array, config: Any
) -> tuple[Selection | None, Selection | None]:
    """The tokens of all images and of all texts of the batch that `exact` alignment keeps; otherwise none is given."""
    if config.align != "exact":
        return None, None
    size, longest = 1 + model.config.num_patches, max(ids.shape[1] for ids in levels)
    length = jnp.stack([(ids != PAD_ID).sum(1).max() for ids in levels]).max()
    return (
        bmm.exact_selection(jax.random.fold_in(key, 0), size, size, config.align_ratio),
        bmm.exact_selection(jax.random.fold_in(key, 1), length, longest, config.align_ratio),
    )


def fast_patterns(keys: jax.Array, mask: jax.Array, ratio: float) -> Selection:
    """The tokens that `fast` alignment keeps of each row of the mask (N, L)."""
    return jax.vmap(functools.partial(bmm.fast_selection, ratio=ratio))(keys, mask)


def pixels(images: jax.Array, boxes: jax.Array, keys: jax.Array, config: Any) -> tuple[jax.Array, jax.Array]:
    """Images (N, H, W, 3) uint8 as the tower sees them, after random erasing, and as they are, both normalised."""
    clean = normalise(images)
    return jax.vmap(erase)(keys, clean, boxes) if config.augment.erase else clean, clean  # the noise costs a little


def encode_views(
    model: IVT,
    params: Any,
    rows: jax.Array,
    images: jax.Array,
    boxes: jax.Array,
    keys: Keys,
    pattern: Selection | None,
    config: Any,
) -> list[jax.Array]:
    """Embeddings of images (b, V, H, W, 3) after masked alignment -> V arrays (b, D), from one pass over all.

    rows (b,) are their numbers in the global batch, `pattern` is that of exact_patterns.
    """
    batch, count = images.shape[:2]
    each = functools.partial(row_keys, rows=rows, count=count)
    # Pair by pair: rows stay on the device that holds them.
    stacked, boxes = (x.reshape(-1, *x.shape[2:]) for x in (images, boxes))
    seen, _ = pixels(stacked, boxes, each(keys.erase), config)
    if config.bmm.align == "fast":
        whole = jnp.ones((batch * count, 1 + model.config.num_patches), bool)
        kept, _ = fast_patterns(each(jax.random.fold_in(keys.align, 0)), whole, config.bmm.align_ratio)
        pattern = kept, None  # all images have the same number of tokens: nothing is padding
    tokens: Any = model.apply({"params": params}, seen, keep=pattern, keys=each(keys.image), method="encode_image")
    return list(tokens[:, 0].reshape(batch, count, -1).swapaxes(0, 1))


def encode_levels(
    model: IVT,
    params: Any,
    rows: jax.Array,
    levels: list[jax.Array],
    keys: Keys,
    pattern: Selection | None,
    config: Any,
) -> list[jax.Array]:
    """Embeddings of the text levels, ids (b, L) each, after masked alignment -> one (b, D) array per level.

    Levels of one length share a pass. `exact` needs one pattern for all levels, so all are padded to the longest; else
    each keeps its own length.
    """
    longest = max(ids.shape[1] for ids in levels)
    passes: dict[int, list[int]] = {}
    for level, ids in enumerate(levels):
        passes.setdefault(ids.shape[1] if pattern is None else longest, []).append(level)
    embeddings: dict[int, jax.Array] = {}
    for length, members in passes.items():
        padding = [((0, 0), (0, length - levels[level].shape[1])) for level in members]
        ids = _pairwise([jnp.pad(levels[i], p, constant_values=PAD_ID) for i, p in zip(members, padding, strict=True)])
        mask, keep = ids != PAD_ID, pattern
        if config.bmm.align == "fast":
            align = _pairwise([row_keys(jax.random.fold_in(keys.align, 1 + level), rows) for level in members])
            keep = fast_patterns(align, mask, config.bmm.align_ratio)
        dropout = _pairwise([row_keys(jax.random.fold_in(keys.text, level), rows) for level in members])
        tokens: Any = model.apply({"params": params}, ids, mask, keep=keep, keys=dropout, method="encode_text")
        of_pairs = tokens[:, 0].reshape(-1, len(members), model.config.width)
        embeddings |= {level: of_pairs[:, n] for n, level in enumerate(members)}
    return [embeddings[level] for level in range(len(levels))]


def _pairwise(parts: list[jax.Array]) -> jax.Array:
    """n arrays (b, ...) -> (b * n, ...), pair by pair: rows stay on the device that holds them."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def reconstruction(
    model: IVT,
    params: Any,
    rows: jax.Array,
    images: jax.Array,
    boxes: jax.Array,
    ids: jax.Array,
    words: jax.Array,
    keys: Keys,
    config: Any,
    mask_id: int,
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Masked words and masked patches of each pair, from one joint pass: first view (r, H, W, 3) and sentence (r, L).

    The tower sees the erased images, the targets are the clean ones. Returns for each term its sums and weights (r,).
    """
    c, b = model.config, config.bmm
    id_key, patch_key = jax.random.split(keys.hide)
    seen, clean = pixels(images, boxes, row_keys(keys.erase, rows), config)
    hidden_ids, hidden_patches = ids, None
    if is_on(b.word_weight):
        hide = functools.partial(bmm.mask_words, ratio=b.word_ratio, mask_id=mask_id, vocab_size=c.vocab_size)
        hidden_ids, positions, word_weights = jax.vmap(hide)(row_keys(id_key, rows), ids, words)
    if is_on(b.patch_weight):
        cover = functools.partial(bmm.mask_patches, grid=c.grid, ratio=b.patch_ratio, block=b.patch_block)
        hidden_patches = jax.vmap(cover)(row_keys(patch_key, rows))
    both: Any = model.apply(
        {"params": params}, seen, hidden_ids, ids != PAD_ID, patch_mask=hidden_patches,
        keys=row_keys(keys.joint, rows), method="encode_joint",
    )  # fmt: skip
    image_tokens, text_tokens = both
    sums = {}
    if is_on(b.word_weight):
        logits: Any = model.apply({"params": params}, _gather(text_tokens, positions), method="word_logits")
        sums["words"] = bmm.word_loss(logits, jnp.take_along_axis(ids, positions, axis=1), word_weights)
    if hidden_patches is not None:
        where = jnp.argsort(~hidden_patches, axis=1, stable=True)[:, : bmm.hidden_count(b.patch_ratio, c.num_patches)]
        predicted: Any = model.apply({"params": params}, _gather(image_tokens[:, 1:], where), method="patch_pixels")
        targets = bmm.patch_targets(extract_patches(clean, c.patch_size, c.stride))
        hidden = bmm.hidden_pixels(hidden_patches, c.image_size, c.patch_size, c.stride)[..., None]
        counted = extract_patches(jnp.broadcast_to(hidden, clean.shape), c.patch_size, c.stride)
        sums["patches"] = bmm.patch_loss(predicted, _gather(targets, where), _gather(counted, where))
    return sums


def _gather(tokens: jax.Array, positions: jax.Array) -> jax.Array:
    return jnp.take_along_axis(tokens, positions[..., None], axis=1)
