"""The objective (IVT, sections 3.2 and 3.3, and others): terms over a batch of (image, caption) pairs.

loss = mla.weight * matching + id.weight * identity + itm.weight * image-text matching
     + bmm.word_weight * masked words + bmm.patch_weight * masked patches
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ivt_jax.losses import bmm, itm
from ivt_jax.losses.heads import ID_HEAD, ITM_HEAD, TEMPERATURE, without_heads
from ivt_jax.losses.identity import identity_losses
from ivt_jax.losses.matching import query_losses, query_similarities
from ivt_jax.losses.mla import mla_loss
from ivt_jax.models.build import Model
from ivt_jax.models.embeddings import extract_patches
from ivt_jax.models.heads import similarity_scale
from ivt_jax.training.draws import (
    Draws,
    Masked,
    erase_boxes,
    exact_tokens,
    fast_image_tokens,
    fast_text_tokens,
    row_keys,
)
from ivt_jax.training.freezing import join_params
from ivt_jax.training.hyperparameters import is_on
from ivt_jax.training.negatives import draw_pairs

# The parameters that `Objective.combine` uses; all others act through embeddings.
DIRECT = ("similarity", ID_HEAD, TEMPERATURE)


class Encoded(NamedTuple):
    """Embeddings (b, D) of each view and level; for other terms, the summed loss and weight of each row."""

    views: list[jax.Array]
    levels: list[jax.Array]
    sums: dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a global batch. A term whose weight is 0 is not computed.

    With `axes` of a mesh, inside `jax.shard_map`, each device gives its own rows, split over these axes in their order,
    and all get the loss of all rows. Without, the rows are the whole batch.
    """

    model: Model
    config: Any
    mask_id: int
    matching: Callable[..., jax.Array] = mla_loss  # how the rows of the devices meet: a function as `mla_loss`
    axes: tuple[str, ...] = ()
    frozen: Any = dataclasses.field(default_factory=dict)  # parameters that `params` lacks, without gradients

    def __call__(self, params: Any, batch: dict[str, Any], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss and {"loss", "mla", "id", "itm", "words", "patches"}; batch: input_pipeline/pipeline.py."""
        draws = self.draw(batch, key)
        encoded = self.encode(params, draws, *self.select(batch))
        encoded = self.match(params, draws, encoded, self.draw_negatives(params, draws, encoded, batch))
        return self.combine(params, encoded, batch["person_ids"])

    def encode(self, params: Any, draws: Draws, pairs: Any, chosen: Any) -> Encoded:
        """Encodes rows of the batch: `pairs` to match, `chosen` to reconstruct; {} = none."""
        views, levels, sums = [], [], {}
        if self.embeds:  # images and texts each by themselves, some tokens dropped
            views = self.encode_views(params, draws, pairs)  # every augmented view of the image
            levels = self.encode_levels(params, draws, pairs)  # sentence, phrase and word level of the caption
        if chosen:  # first view and sentence as one sequence, with hidden words and patches
            masked = self.hide(draws, chosen)
            image_tokens, text_tokens = self.encode_joint(params, draws, masked)
            if is_on(self.config.bmm.word_weight):  # cross-entropy of the hidden words
                sums["words"] = self.word_sums(params, text_tokens, masked)
            if is_on(self.config.bmm.patch_weight):  # squared error of the hidden patches' normalised pixels
                sums["patches"] = self.patch_sums(params, image_tokens, masked)
        return Encoded(views, levels, sums)

    def draw_negatives(self, params: Any, draws: Draws, encoded: Encoded, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the pairs to match (negatives.py), drawn by the similarities of first views and sentences; {} = none.

        params: DIRECT alone are used.
        """
        if not is_on(self.config.itm.weight):
            return {}
        of_sentence = list(self.config.mla.levels).index("sentence")
        compare = query_similarities(self.config.match.loss, self.config.match.normalise)
        similarities = functools.partial(compare, scale=self.scale(params))
        embeddings, firsts = (encoded.views[0], encoded.levels[of_sentence]), self.firsts(batch)
        return draw_pairs(draws.match, embeddings, batch["person_ids"], firsts, similarities, self.axes)

    def match(self, params: Any, draws: Draws, encoded: Encoded, drawn: dict[str, Any]) -> Encoded:
        """Returns `encoded` with the sums of image-text matching: each drawn row is encoded in three joint passes."""
        if not drawn:
            return encoded
        own, other = drawn["own"], drawn["other"]
        image, image_of_other = (  # with the noise that each has elsewhere
            erase_boxes(x["images"], x["erase"], row_keys(draws.erase, x["rows"]), self.config)[0] for x in (own, other)
        )
        ids, mask = (_pairwise([own[name], other[name], own[name]]) for name in ("ids", "mask"))
        keys = row_keys(jax.random.fold_in(draws.match, 2), own["rows"], 3)
        images = _pairwise([image, image, image_of_other])
        _, texts = self.apply(params, "encode_joint", images, ids, mask, keys=keys)
        first = texts[:, 0].reshape(-1, 3, texts.shape[-1])
        losses = itm.matching_losses(join_params(params, self.frozen)[ITM_HEAD], first)
        counts = drawn["weights"] > 0
        return encoded._replace(sums={**encoded.sums, "itm": (losses * counts, drawn["weights"])})

    @property
    def embeds(self) -> bool:
        """Whether images and texts are encoded each by themselves: for the matching or the identity loss."""
        return is_on(self.config.mla.weight) or is_on(self.config.id.weight)

    def combine(self, params: Any, encoded: Encoded, person_ids: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the weighted sum of the terms, and each term, of all devices' rows. Negatives are the whole batch.

        Of params it uses DIRECT alone.
        """
        mla, reconstruction = self.config.mla, self.config.bmm
        weights = {"mla": mla.weight, "id": self.config.id.weight, "itm": self.config.itm.weight}
        weights |= {"words": reconstruction.word_weight, "patches": reconstruction.patch_weight}
        terms = {name: bmm.mean_loss(*sums, self.axes) for name, sums in encoded.sums.items()}
        if encoded.views and is_on(self.config.id.weight):
            classifier = join_params(params, self.frozen)[ID_HEAD]
            of_pairs = identity_losses(classifier, encoded.views, encoded.levels, person_ids)
            terms = {"id": bmm.mean_loss(of_pairs, jnp.ones_like(of_pairs), self.axes)} | terms
        if encoded.views and is_on(mla.weight):
            losses = query_losses(self.config.match.loss, self.config.match.normalise)
            options = {"losses": losses, "scale": self.scale(params)}
            sides = encoded.views, encoded.levels
            terms = {"mla": self.matching(*sides, person_ids, mla.groups, **options)} | terms
        loss = sum(weights[name] * term for name, term in terms.items())
        return loss, {"loss": loss, **terms}

    def draw(self, batch: dict[str, Any], key: jax.Array) -> Draws:
        """Returns the random inputs of a step. Parts of one batch are encoded with the same draws."""
        config, draws = self.config, Draws(*jax.random.split(key, 6))._replace(match=jax.random.fold_in(key, 6))
        if not self.embeds or config.bmm.align != "exact":
            return draws
        masks = [batch["mask"][name] for name in config.mla.levels]
        ratio = config.bmm.align_ratio
        images, texts = exact_tokens(draws.align, self.model.config.image_tokens, masks, ratio, self.axes)
        return draws._replace(image_tokens=images, text_tokens=texts)

    def select(self, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the arrays of all pairs, and of those to reconstruct; "rows": their numbers in the global batch."""
        firsts, count = self.firsts(batch), len(batch["images"])
        pairs = {name: batch[name] for name in ("images", "erase", "text", "mask")} | {"rows": firsts["rows"]}
        if not (is_on(self.config.bmm.word_weight) or is_on(self.config.bmm.patch_weight)):
            return pairs, {}
        firsts["words"] = batch["words"]
        chosen = self.config.bmm.rows // jax.lax.axis_size(self.axes) or count
        return pairs, {name: x[:: count // chosen] for name, x in firsts.items()}  # evenly spaced: more persons

    def firsts(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Returns the first view and the sentence of each pair, and its number in the global batch."""
        count = len(batch["images"])
        return {
            "rows": jax.lax.axis_index(self.axes) * count + jnp.arange(count),
            "images": batch["images"][:, 0], "erase": batch["erase"][:, 0],
            "ids": batch["text"]["sentence"], "mask": batch["mask"]["sentence"],
        }  # fmt: skip

    def encode_views(self, params: Any, draws: Draws, pairs: Any) -> list[jax.Array]:
        """Returns the embeddings of images (b, V, H, W, 3) after masked alignment: V arrays (b, D), from one pass."""
        batch, count = pairs["images"].shape[:2]
        keys = functools.partial(row_keys, rows=pairs["rows"], count=count)
        # Pair by pair: rows stay on the device that holds them.
        images, boxes = (x.reshape(-1, *x.shape[2:]) for x in (pairs["images"], pairs["erase"]))
        erased, _ = erase_boxes(images, boxes, keys(draws.erase), self.config)
        keep = draws.image_tokens
        if self.config.bmm.align == "fast":
            of_images = keys(jax.random.fold_in(draws.align, 0))
            keep = fast_image_tokens(of_images, self.model.config, self.config.bmm.align_ratio)
        embeddings = self.apply(params, "embed_image", erased, keep=keep, keys=keys(draws.image))
        return list(embeddings.reshape(batch, count, -1).swapaxes(0, 1))

    def encode_levels(self, params: Any, draws: Draws, pairs: Any) -> list[jax.Array]:
        """Returns the embeddings of the text levels, ids (b, L) each, after masked alignment: one (b, D) per level.

        Levels of one length share a pass. With `exact` all levels keep the same tokens and share one pass.
        """
        passes: dict[int, dict[int, tuple[jax.Array, jax.Array]]] = {}
        for number, name in enumerate(self.config.mla.levels):
            ids, mask = pairs["text"][name], pairs["mask"][name]
            passes.setdefault(ids.shape[1] if draws.text_tokens is None else 0, {})[number] = ids, mask
        embeddings: dict[int, jax.Array] = {}
        for levels in passes.values():
            embeddings |= self.encode_texts(params, draws, pairs["rows"], levels)
        return [embeddings[number] for number in sorted(embeddings)]

    def encode_texts(
        self, params: Any, draws: Draws, rows: jax.Array, levels: dict[int, tuple[jax.Array, jax.Array]]
    ) -> dict[int, jax.Array]:
        """Encodes levels in one pass, padded to the longest: ids and mask (b, L) by number -> embeddings by number."""

        def keys(key: jax.Array, first: int) -> jax.Array:
            return _pairwise([row_keys(jax.random.fold_in(key, first + number), rows) for number in levels])

        length = max(ids.shape[1] for ids, _ in levels.values())
        ids, mask = (
            _pairwise([jnp.pad(x, ((0, 0), (0, length - x.shape[1]))) for x in parts])
            for parts in zip(*levels.values(), strict=True)
        )
        keep = draws.text_tokens
        if self.config.bmm.align == "fast":
            keep = fast_text_tokens(keys(draws.align, 1), mask, self.model.config, self.config.bmm.align_ratio)
        embeddings = self.apply(params, "embed_text", ids, mask, keep=keep, keys=keys(draws.text, 0))
        of_pairs = embeddings.reshape(-1, len(levels), embeddings.shape[-1])
        return {number: of_pairs[:, place] for place, number in enumerate(levels)}

    def hide(self, draws: Draws, chosen: Any) -> Masked:
        """Erases parts of images (r, H, W, 3), and hides words of sentences (r, L) and patches."""
        c, b, rows, ids = self.model.config, self.config.bmm, chosen["rows"], chosen["ids"]
        id_key, patch_key = jax.random.split(draws.hide)
        erased, clean = erase_boxes(chosen["images"], chosen["erase"], row_keys(draws.erase, rows), self.config)
        hidden_ids, positions, weights, patches = ids, None, None, None
        if is_on(b.word_weight):
            hide = functools.partial(bmm.mask_words, ratio=b.word_ratio, mask_id=self.mask_id, vocab_size=c.vocab_size)
            hidden_ids, positions, weights = jax.vmap(hide)(row_keys(id_key, rows), ids, chosen["words"])
        if is_on(b.patch_weight):
            cover = functools.partial(bmm.mask_patches, grid=c.grid, ratio=b.patch_ratio, block=b.patch_block)
            patches = jax.vmap(cover)(row_keys(patch_key, rows))
        return Masked(rows, erased, clean, ids, hidden_ids, chosen["mask"], positions, weights, patches)

    def encode_joint(self, params: Any, draws: Draws, masked: Masked) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens (r, 1 + P, D) of the images and (r, L, D) of the sentences, from one joint pass."""
        keys = row_keys(draws.joint, masked.rows)
        inputs = masked.erased, masked.hidden_ids, masked.mask
        return self.apply(params, "encode_joint", *inputs, patch_mask=masked.patches, keys=keys)

    def word_sums(self, params: Any, text_tokens: jax.Array, masked: Masked) -> tuple[jax.Array, jax.Array]:
        """Returns the loss of the hidden words and the number of their tokens, (r,) each."""
        logits = self.apply(params, "word_logits", _gather(text_tokens, masked.positions))
        targets = jnp.take_along_axis(masked.ids, masked.positions, axis=1)
        return bmm.word_loss(logits, targets, masked.weights)

    def patch_sums(self, params: Any, image_tokens: jax.Array, masked: Masked) -> tuple[jax.Array, jax.Array]:
        """Returns the loss of the hidden patches and the number of hidden values, (r,) each. Targets are not erased."""
        c, clean, hidden = self.model.config, masked.clean, masked.patches
        count = bmm.hidden_count(self.config.bmm.patch_ratio, c.num_patches)
        where = jnp.argsort(~hidden, axis=1, stable=True)[:, :count]
        predicted = self.apply(params, "patch_pixels", _gather(image_tokens[:, 1:], where))
        targets = bmm.patch_targets(extract_patches(clean, c.patch_size, c.stride))
        pixels = bmm.hidden_pixels(hidden, c.image_size, c.patch_size, c.stride)[..., None]
        weights = extract_patches(jnp.broadcast_to(pixels, clean.shape), c.patch_size, c.stride)
        return bmm.patch_loss(predicted, _gather(targets, where), _gather(weights, where))

    def scale(self, params: Any) -> jax.Array | float | None:
        """Returns the factor of similarities, None = 1: 1 / match.temperature, or learned, at most 100.

        It is learned by the head of match.learned, or with match.temperature 0 by the model.
        """
        if self.config.match.learned:
            return similarity_scale(join_params(params, self.frozen)[TEMPERATURE])
        temperature = self.config.match.temperature
        if not is_on(temperature):
            return self.apply(params, "scale")
        return 1 / temperature if is_on(temperature, off=1.0) else None

    def apply(self, params: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the model."""
        params = without_heads(join_params(params, self.frozen))
        return self.model.apply({"params": params}, *args, method=method, **kwargs)


def _pairwise(parts: list[jax.Array]) -> jax.Array:
    """n arrays (b, ...) -> (b * n, ...), pair by pair: rows stay on the device that holds them."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def _gather(tokens: jax.Array, positions: jax.Array) -> jax.Array:
    return jnp.take_along_axis(tokens, positions[..., None], axis=1)
