"""The objective of a batch: the forward passes of the tower and the weighted sum of its losses.

total = mla.weight * CMPM(levels, views, after masked alignment) + bmm.word_weight * words + bmm.patch_weight * patches
"""

from typing import Any

import jax
import jax.numpy as jnp

from ivt_jax.images import erase, normalise
from ivt_jax.losses import bmm
from ivt_jax.losses.mla import mla_loss
from ivt_jax.models.embeddings import extract_patches
from ivt_jax.models.ivt import IVT, PAD_ID, Selection


def objective(
    model: IVT, params: Any, batch: dict[str, Any], key: jax.Array, config: Any, mask_id: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of one global batch (see input_pipeline/pipeline.py for its arrays) -> (total, every term by itself).

    A term whose weight is 0 is not computed. The negatives of the matching are the global batch, however it is sharded.
    """
    erase_key, align_key, word_key, image_key, text_key, joint_key = jax.random.split(key, 6)
    clean = normalise(batch["images"])
    views = erase(clean, batch["erase"], erase_key) if config.augment.erase else clean  # the noise costs a little
    terms = {}
    if config.mla.weight:
        images = encode_views(model, params, views, image_key, align_key, config.bmm)
        levels = [batch["text"][level] for level in config.mla.levels]
        texts = encode_levels(model, params, levels, text_key, align_key, config.bmm)
        terms["mla"] = mla_loss(images, texts, batch["person_ids"], config.mla.groups)
    if config.bmm.word_weight or config.bmm.patch_weight:
        rows = config.bmm.rows or len(views)
        # Evenly spaced: more persons. A reshape, not a gather of indices: rows stay on the device that holds them.
        seen, whole, ids, words = (
            x.reshape(rows, -1, *x.shape[1:])[:, 0]
            for x in (views[:, 0], clean[:, 0], batch["text"]["sentence"], batch["words"])
        )
        terms |= reconstruction(model, params, seen, whole, ids, words, word_key, joint_key, config.bmm, mask_id)
    weights = {"mla": config.mla.weight, "words": config.bmm.word_weight, "patches": config.bmm.patch_weight}
    total = sum(weights[name] * value for name, value in terms.items())
    return total, {"loss": total, **terms}


def encode_views(
    model: IVT, params: Any, views: jax.Array, dropout: jax.Array, align: jax.Array, config: Any
) -> list[jax.Array]:
    """Embeddings of the views (B, V, H, W, 3) after masked alignment -> V arrays (B, D), from one pass over all."""
    batch, count = views.shape[:2]
    stacked = views.reshape(batch * count, *views.shape[2:])  # pair by pair: rows stay on the device that holds them
    size = 1 + model.config.num_patches
    mask = jnp.ones((count * batch, size), bool)
    keep = select(jax.random.fold_in(align, 0), mask, size, config)
    if config.align == "fast" and keep is not None:
        keep = keep[0], None  # all images have the same number of tokens: nothing is padding
    tokens = _apply(model, params, stacked, keep=keep, dropout=dropout, method="encode_image")
    return list(tokens[:, 0].reshape(batch, count, -1).swapaxes(0, 1))


def encode_levels(
    model: IVT, params: Any, levels: list[jax.Array], dropout: jax.Array, align: jax.Array, config: Any
) -> list[jax.Array]:
    """Embeddings of the text levels, ids (B, L) each, after masked alignment -> one (B, D) array per level.

    `exact` needs one pattern for all levels, hence one padded array of them; else each level keeps its own length.
    """
    if config.align == "exact":
        longest = max(ids.shape[1] for ids in levels)
        padded = [jnp.pad(ids, ((0, 0), (0, longest - ids.shape[1])), constant_values=PAD_ID) for ids in levels]
        batches = [jnp.stack(padded, axis=1).reshape(-1, longest)]  # pair by pair, as the views
    else:
        batches = levels
    embeddings = []
    for index, ids in enumerate(batches):
        mask = ids != PAD_ID
        keep = select(jax.random.fold_in(align, 1 + index), mask, mask.sum(1).max(), config)
        dropout_key = jax.random.fold_in(dropout, index)
        tokens = _apply(model, params, ids, mask, keep=keep, dropout=dropout_key, method="encode_text")
        embeddings.append(tokens[:, 0])
    if config.align == "exact":
        return list(embeddings[0].reshape(-1, len(levels), model.config.width).swapaxes(0, 1))
    return embeddings


def select(key: jax.Array, mask: jax.Array, longest: jax.Array | int, config: Any) -> Selection | None:
    """The tokens that masked alignment keeps, by `bmm.align`: off, exact (as released), fast."""
    if config.align == "exact":
        return bmm.exact_selection(key, longest, mask.shape[1], config.align_ratio)
    if config.align == "fast":
        return bmm.fast_selection(key, mask, config.align_ratio)
    return None


def reconstruction(
    model: IVT,
    params: Any,
    images: jax.Array,
    clean: jax.Array,
    ids: jax.Array,
    words: jax.Array,
    key: jax.Array,
    dropout: jax.Array,
    config: Any,
    mask_id: int,
) -> dict[str, jax.Array]:
    """Masked words and masked patches of each pair, from one joint pass: first view and sentence level.

    images (R, H, W, 3) enter the tower; `clean`, the same before random erasing, gives the targets.
    """
    c = model.config
    id_key, patch_key = jax.random.split(key)
    hidden_ids, hidden_patches = ids, None
    if config.word_weight:
        hidden_ids, positions, word_weights = bmm.mask_words(
            id_key, ids, words, ratio=config.word_ratio, mask_id=mask_id, vocab_size=c.vocab_size
        )
    if config.patch_weight:
        hidden_patches = bmm.mask_patches(patch_key, len(ids), c.grid, config.patch_ratio, config.patch_block)
    image_tokens, text_tokens = _apply(
        model, params, images, hidden_ids, ids != PAD_ID, patch_mask=hidden_patches, dropout=dropout,
        method="encode_joint",
    )  # fmt: skip
    terms = {}
    if config.word_weight:
        logits: Any = model.apply({"params": params}, _gather(text_tokens, positions), method="word_logits")
        terms["words"] = bmm.word_loss(logits, jnp.take_along_axis(ids, positions, axis=1), word_weights)
    if hidden_patches is not None:
        where = jnp.argsort(~hidden_patches, axis=1, stable=True)[
            :, : bmm.hidden_count(config.patch_ratio, c.num_patches)
        ]
        predicted: Any = model.apply({"params": params}, _gather(image_tokens[:, 1:], where), method="patch_pixels")
        targets = bmm.patch_targets(extract_patches(clean, c.patch_size, c.stride))
        hidden = bmm.hidden_pixels(hidden_patches, c.image_size, c.patch_size, c.stride)[..., None]
        counted = extract_patches(jnp.broadcast_to(hidden, clean.shape), c.patch_size, c.stride)
        terms["patches"] = bmm.patch_loss(predicted, _gather(targets, where), _gather(counted, where))
    return terms


def _apply(model: IVT, params: Any, *args, dropout: jax.Array, method: str, **kwargs):
    return model.apply(
        {"params": params}, *args, **kwargs, deterministic=False, rngs={"dropout": dropout}, method=method
    )


def _gather(tokens: jax.Array, positions: jax.Array) -> jax.Array:
    return jnp.take_along_axis(tokens, positions[..., None], axis=1)
