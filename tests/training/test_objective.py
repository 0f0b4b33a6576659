"""The objective: which terms there are, what goes into each, and that the switches switch."""

import functools

import jax
import numpy as np
import pytest

from configs import default, synth
from ivt_jax.encoding.pixels import normalise
from ivt_jax.losses import bmm
from ivt_jax.losses.mla import mla_loss
from ivt_jax.models.build import build_model
from ivt_jax.models.ivt import IVT
from ivt_jax.training import objective as module
from ivt_jax.training.draws import Draws, erase_boxes, exact_tokens, row_keys
from ivt_jax.training.objective import Objective

MASK_ID = 4
LEVELS = {"sentence": 12, "phrase": 8, "word": 6}


def tiny(**changes):
    config = default.get_config()
    config.model.update(
        {"image_size": (24, 12), "patch_size": 6, "stride": 6, "width": 16, "depth": 1, "num_heads": 2,
         "vocab_size": 40, "max_text_length": 12, "dropout": 0.0, "drop_path": 0.0, "dtype": "float32"}
    )  # fmt: skip
    config.bmm.align = "off"
    for section, values in changes.items():
        config[section].update(values)
    return config


def make_batch(size=4, views=3):
    rng = np.random.default_rng(0)
    text = {}
    for level, length in LEVELS.items():
        lengths = rng.integers(4, length + 1, (size, 1))
        lengths[0] = length
        text[level] = np.where(np.arange(length) < lengths, rng.integers(5, 40, (size, length)), 0).astype(np.int32)
    words = np.where(text["sentence"] > 0, np.arange(12), 0).astype(np.int32)  # every token but the first is a word
    return {
        "images": rng.integers(0, 256, (size, views, 24, 12, 3), np.uint8),
        "erase": np.tile(np.array([2, 3, 8, 6], np.int32), (size, views, 1)),
        "text": text,
        "mask": {level: ids > 0 for level, ids in text.items()},
        "words": words,
        "person_ids": np.arange(size, dtype=np.int32) // 2,
    }


BATCH = make_batch()
KEY = jax.random.key(7)


@functools.cache
def params_of(stride=6, depth=1):
    model = build_model(tiny(model={"stride": stride, "depth": depth}).model)
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)


def objective_of(config, **changes):
    return Objective(build_model(config.model), config, MASK_ID, **changes)


def evaluate(config, batch):
    return jax.jit(lambda params: objective_of(config)(params, batch, KEY))(params_of())


def terms_of(config, batch=BATCH):
    """Names of the metrics, by tracing alone."""
    objective = objective_of(config)
    params = jax.eval_shape(objective.model.init, jax.random.key(0))["params"]
    return set(jax.eval_shape(lambda *x: objective(*x, KEY), params, batch)[1])


# ---- switches


def test_the_total_is_the_weighted_sum(monkeypatch):
    monkeypatch.setattr(Objective, "encode_views", lambda *args: ["embeddings"])
    monkeypatch.setattr(Objective, "encode_levels", lambda *args: [])
    monkeypatch.setattr(Objective, "encode_joint", lambda *args: (None, None))
    monkeypatch.setattr(Objective, "word_sums", lambda *args: (np.array([3.0, 5.0]), np.ones(2)))
    monkeypatch.setattr(Objective, "patch_sums", lambda *args: (np.array([16.0]), np.array([2.0])))
    config = tiny(mla={"weight": 2.0}, bmm={"word_weight": 3.0, "patch_weight": 0.5})
    total, metrics = objective_of(config, matching=lambda *args, **options: -1.5)(None, BATCH, KEY)
    assert total == 2 * -1.5 + 3 * 4 + 0.5 * 8
    assert metrics == {"loss": total, "mla": -1.5, "words": 4.0, "patches": 8.0}


@pytest.mark.parametrize(
    "changes, terms, unused",
    [
        ({"mla": {"weight": 0.0}}, {"words", "patches"}, ["Objective.encode_views", "Objective.encode_levels"]),
        ({"bmm": {"word_weight": 0.0}}, {"mla", "patches"}, ["bmm.mask_words", "bmm.word_loss"]),
        ({"bmm": {"patch_weight": 0.0}}, {"mla", "words"}, ["bmm.mask_patches", "bmm.hidden_pixels", "bmm.patch_loss"]),
        ({"bmm": {"word_weight": 0.0, "patch_weight": 0.0}}, {"mla"}, ["Objective.hide", "Objective.encode_joint"]),
    ],
)
def test_a_term_of_weight_zero_is_not_computed(monkeypatch, changes, terms, unused):
    for name in unused:
        monkeypatch.setattr(f"ivt_jax.training.objective.{name}", None)  # a call would be a TypeError
    assert terms_of(tiny(**changes)) == {"loss", *terms}


@pytest.mark.parametrize(
    "variant, levels, reconstructs",
    [
        ("baseline", 1, False),
        ("mla", 3, False),
        ("bmm_align", 1, False),
        ("bmm_reconstruct", 1, True),
        ("full", 3, True),
    ],
)
def test_the_ablation_has_the_terms_of_its_names(variant, levels, reconstructs):
    config = synth.get_config(variant)
    config.model.update(tiny().model)
    config.bmm.rows = 2
    text, mask = ({level: BATCH[name][level] for level in list(LEVELS)[:levels]} for name in ("text", "mask"))
    expected = {"loss", "mla", "words", "patches"} if reconstructs else {"loss", "mla"}
    assert terms_of(config, {**BATCH, "text": text, "mask": mask}) == expected  # another level would be missed
    assert (config.bmm.align != "off") == (variant in ("bmm_align", "full"))


# ---- alignment


def encoded(config, batch=BATCH, rows=(0, 1, 2, 3)):
    """Embeddings of the batch's rows of these numbers, views without erasing and levels."""
    objective, params, rows = objective_of(config), params_of(depth=config.model.depth), np.array(rows)
    pairs = {"images": batch["images"], "erase": np.zeros((4, 3, 4), np.int32)}
    pairs |= {name: batch[name] for name in ("text", "mask")}
    pairs = jax.tree.map(lambda x: x[rows], pairs) | {"rows": rows}
    return jax.jit(lambda key: objective.encode(params, objective.draw(batch, key), pairs, {})[:2])(KEY)


@pytest.fixture(scope="module")
def separately():
    """The embeddings without masked alignment, view by view and level by level."""
    model, params = build_model(tiny().model), params_of()
    image = jax.jit(lambda x: model.apply({"params": params}, normalise(x, model.config), method="embed_image"))
    text = jax.jit(lambda ids: model.apply({"params": params}, ids, ids > 0, method="embed_text"))
    return [image(BATCH["images"][:, v]) for v in range(3)], [text(ids) for ids in BATCH["text"].values()]


@pytest.mark.parametrize("align, ratio", [("off", 0.5), ("exact", 0.0), ("fast", 0.0)])
def test_without_dropping_each_view_and_level_is_encoded_as_it_is(separately, align, ratio):
    actual = encoded(tiny(bmm={"align": align, "align_ratio": ratio}))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), actual, separately)


@pytest.mark.parametrize("align", ["exact", "fast"])
def test_masked_alignment_drops_tokens_of_every_view_and_level(separately, align):
    actual = encoded(tiny(bmm={"align": align, "align_ratio": 0.9}))
    for after, before in zip(jax.tree.leaves(actual), jax.tree.leaves(separately), strict=True):
        assert np.abs(after - before).max() > 1e-3


def test_exact_alignment_has_one_pattern_per_modality_and_fast_one_per_row():
    # The same image, and the same text, in every row, view and level: equal embeddings mean equal patterns.
    same = {
        "images": np.broadcast_to(BATCH["images"][:1, :1], BATCH["images"].shape),
        **{name: dict.fromkeys(LEVELS, np.tile(BATCH[name]["sentence"][:1], (4, 1))) for name in ("text", "mask")},
    }
    for align in ("exact", "fast"):
        images, texts = encoded(tiny(bmm={"align": align, "align_ratio": 0.6}), same)
        for embeddings in (np.concatenate(images), np.concatenate(texts)):
            spread = np.abs(embeddings - embeddings[0]).max()
            assert spread < 1e-5 if align == "exact" else spread > 1e-3


def test_no_two_draws_share_a_key(monkeypatch):
    """Noise, kept tokens and dropout of every row, view and level, and what is hidden of every row."""
    recorded = []

    def spy(*args, **kwargs):
        recorded.append(row_keys(*args, **kwargs))
        return recorded[-1]

    monkeypatch.setattr(module, "row_keys", spy)
    objective = objective_of(tiny(bmm={"align": "fast", "align_ratio": 0.5}))

    def run(params):
        objective(params, BATCH, KEY)
        return [jax.random.key_data(keys) for keys in recorded]

    keys = [tuple(key) for drawn in jax.jit(run)(params_of()) for key in drawn.tolist()]
    views, levels, hidden = 3 * 4 * 3, 2 * 4 * 3, 3 * 4  # draws x rows x views or levels; words, patches, joint pass
    assert len(set(keys)) == views + levels + hidden
    assert len(keys) == len(set(keys)) + 4  # the joint pass sees each row's first view with the noise it has elsewhere
    # A run that an older version began goes on with the same draws: a row's number is folded in, then the view's.
    split, fold, expected = Draws(*jax.random.split(KEY, 6)), jax.random.fold_in, []
    for row in range(4):
        for n in range(3):
            of_views = split.erase, fold(split.align, 0), split.image
            expected += [fold(fold(key, row), n) for key in of_views]
            expected += [fold(fold(key, row), 0) for key in (fold(split.align, 1 + n), fold(split.text, n))]
        expected += [fold(fold(key, row), 0) for key in (*jax.random.split(split.hide), split.joint)]
    assert set(keys) == {tuple(jax.random.key_data(key).tolist()) for key in expected}


def test_exact_patterns_of_images_and_texts_are_independent():
    """Images and texts of nine tokens: with a common key they would keep the same ones."""
    levels = [np.ones((2, 9), np.int32), np.ones((2, 4), np.int32)]
    patterns = [exact_tokens(jax.random.key(seed), 9, levels, 0.5) for seed in range(5)]
    assert any((image[0] != text[0]).any() for image, text in patterns)
    assert any(image[1].sum() != text[1].sum() for image, text in patterns)


def test_exact_patterns_count_the_tokens_of_the_longest_text():
    """Texts of 3 and 5 tokens at two levels of 6 and 8 places: at ratio 1 up to 4 of 5 are dropped, and never more."""
    masks = [np.arange(6)[None] < 3, np.arange(8)[None] < 5]
    kept = []
    for seed in range(40):
        indices, valid = exact_tokens(jax.random.key(seed), 9, masks, 1.0)[1]
        assert indices.shape == (1, 8) and not (indices[valid] >= 5).any()
        kept.append(int(valid.sum()))
    assert set(kept) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("switched_on", [True, False])
def test_erased_pixels_are_standard_normal_after_normalising(switched_on):
    """The noise has mean 0 and deviation 1 beside pixels in [-1, 1]; outside of the box nothing changes."""
    images = np.random.default_rng(1).integers(0, 256, (2, 40, 30, 3), np.uint8)
    boxes, keys = np.array([[4, 6, 30, 20], [0, 0, 0, 0]], np.int32), row_keys(KEY, np.arange(2))
    seen, clean = (np.asarray(x) for x in erase_boxes(images, boxes, keys, tiny(augment={"erase": float(switched_on)})))
    np.testing.assert_allclose(clean, (images / 255 - 0.5) / 0.5, atol=1e-6)
    expected = clean.copy()
    if switched_on:
        noise = seen[0, 4:34, 6:26]
        # Of n = 1800 standard normal numbers: mean within 5 / sqrt(n) = 0.12, deviation within 5 / sqrt(2 n) = 0.09.
        assert abs(noise.mean()) < 0.12 and abs(noise.std() - 1) < 0.09
        expected[0, 4:34, 6:26] = noise
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("align", ["exact", "fast"])
def test_a_part_of_the_batch_is_encoded_as_within_the_whole(align):
    config = tiny(model={"dropout": 0.3, "drop_path": 0.5, "depth": 2}, bmm={"align": align, "align_ratio": 0.6})
    whole, part = encoded(config), encoded(config, rows=(3, 1))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[np.array([3, 1])], atol=1e-5), part, whole)


def test_a_part_of_the_batch_is_reconstructed_and_erased_as_within_the_whole():
    config = tiny(model={"dropout": 0.3, "drop_path": 0.5, "depth": 2})
    config.mla.weight = 0.0
    objective, params = objective_of(config), params_of(depth=2)
    draws, chosen = objective.draw(BATCH, KEY), objective.select(BATCH)[1]

    @jax.jit
    def rebuild(chosen):
        return objective.hide(draws, chosen).erased, objective.encode(params, draws, {}, chosen).sums

    whole, part = (rebuild(jax.tree.map(lambda x, r=r: x[r], chosen)) for r in (np.arange(4), np.array([3, 1])))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[np.array([3, 1])], rtol=1e-5), part, whole)
    erased = whole[0][:, 2:10, 3:9].reshape(4, -1)
    assert len(np.unique(erased)) == erased.size  # no two rows have the same noise


def test_views_and_levels_have_draws_of_their_own():
    of_views = jax.random.key_data(row_keys(KEY, np.array([5, 2]), 3)).reshape(2, 3, -1)
    assert len({tuple(key) for row in of_views.tolist() for key in row}) == 6
    np.testing.assert_array_equal(of_views[:, 0], jax.random.key_data(row_keys(KEY, np.array([5, 2]))))


def test_the_matching_is_mla_of_the_embeddings(separately):
    batch = {**BATCH, "erase": np.zeros_like(BATCH["erase"])}
    _, metrics = evaluate(tiny(bmm={"word_weight": 0.0, "patch_weight": 0.0}), batch)
    np.testing.assert_allclose(metrics["mla"], mla_loss(*separately, BATCH["person_ids"]), rtol=1e-5)


def test_the_matching_has_the_groups_of_the_config(separately):
    batch = {**BATCH, "erase": np.zeros_like(BATCH["erase"])}
    config = tiny(mla={"groups": 2}, bmm={"word_weight": 0.0, "patch_weight": 0.0})
    _, metrics = evaluate(config, batch)
    expected = mla_loss(*separately, BATCH["person_ids"], 2)
    np.testing.assert_allclose(metrics["mla"], expected, rtol=1e-5)
    assert abs(expected - mla_loss(*separately, BATCH["person_ids"])) > 1e-2


# ---- reconstruction: what reaches the two losses


@pytest.fixture(scope="module")
def reconstructed():
    """Metrics of overlapping patches (5 x 2) with all views erased, and what reached the losses."""
    config = tiny(mla={"weight": 0.0}, bmm={"patch_block": 2}, model={"stride": 4})
    batch = {**BATCH, "erase": np.tile(np.array([0, 0, 24, 12], np.int32), (4, 3, 1))}
    objective, params, calls = objective_of(config), params_of(4), {}

    def spy(owner, name):
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            calls.setdefault(name, []).append((args, kwargs))
            return function(*args, **kwargs)

        patch.setattr(owner, name, wrapped)

    def run(params):
        metrics = objective(params, batch, KEY)[1]
        (_, _, image, corrupted, _), joint = calls["apply"][0]
        (_, positions), _ = calls["_gather"][0]
        seen = {"words": (corrupted, positions, *calls["word_loss"][0][0]),
                "patches": (joint["patch_mask"], *calls["patch_loss"][0][0]), "image": image}  # fmt: skip
        apply = functools.partial(objective.model.apply, {"params": params})
        tokens = apply(image, corrupted, corrupted > 0, patch_mask=joint["patch_mask"], method="encode_joint")
        patches, texts = apply(tokens[0][:, 1:], method="patch_pixels"), apply(tokens[1], method="word_logits")
        return metrics, seen | {"of_all": (patches, texts)}

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((IVT, "apply"), (module, "_gather"), (bmm, "word_loss"), (bmm, "patch_loss")):
            spy(owner, name)
        return jax.tree.map(np.asarray, jax.jit(run)(params))


def test_words_are_predicted_as_they_were_before_masking(reconstructed):
    metrics, seen = reconstructed
    corrupted, positions, logits, targets, weights = seen["words"]
    assert (corrupted == MASK_ID).any()
    losses = []
    for row, slot in np.argwhere(weights):
        original = BATCH["text"]["sentence"][row, positions[row, slot]]
        assert targets[row, slot] == original
        p = np.exp(logits[row, slot].astype(np.float64))
        losses.append(-np.log(p[original] / p.sum()))
    np.testing.assert_allclose(metrics["words"], np.mean(losses), rtol=1e-5)


def test_patches_are_predicted_as_in_the_clean_first_view(reconstructed):
    metrics, seen = reconstructed
    hidden, predicted, targets, weights = seen["patches"]
    corners = [(p // 2 * 4, p % 2 * 4) for p in range(10)]
    total = count = 0.0
    for b in range(4):
        image = BATCH["images"][b, 0] / 127.5 - 1
        covered = np.zeros((24, 12, 3))
        for p in np.flatnonzero(~hidden[b]):
            covered[corners[p][0] :, corners[p][1] :][:6, :6] = 1
        for slot, p in enumerate(np.flatnonzero(hidden[b])):
            window = np.s_[corners[p][0] : corners[p][0] + 6, corners[p][1] : corners[p][1] + 6]
            patch, weight = image[window].ravel(), 1 - covered[window].ravel()
            np.testing.assert_allclose(targets[b, slot], (patch - patch.mean()) / patch.std(), atol=1e-4)
            np.testing.assert_array_equal(weights[b, slot], weight)
            total += (weight * (predicted[b, slot] - targets[b, slot]) ** 2).sum()
            count += weight.sum()
    assert predicted.shape == (4, 5, 108)
    np.testing.assert_allclose(metrics["patches"], total / count, rtol=1e-5)


def test_each_prediction_is_of_its_own_token(reconstructed):
    _, seen = reconstructed
    of_patches, of_texts = seen["of_all"]
    _, positions, logits, _, weights = seen["words"]
    hidden, predicted, _, _ = seen["patches"]
    for row in range(4):
        np.testing.assert_allclose(predicted[row], of_patches[row][hidden[row]], atol=1e-5)
        for slot in np.flatnonzero(weights[row]):
            np.testing.assert_allclose(logits[row, slot], of_texts[row, positions[row, slot]], atol=1e-5)
    assert np.ptp(of_patches, axis=1).max() > 1e-2 and np.ptp(of_texts, axis=1).max() > 1e-2  # tokens differ


def test_the_joint_pass_sees_the_erased_image_and_hides_by_the_ratios_and_the_block(reconstructed):
    _, seen = reconstructed
    clean = np.asarray(normalise(BATCH["images"][:, 0], tiny().model))  # all of it is erased: nothing is left
    assert (seen["image"] != clean).mean() > 0.99
    _, positions, _, _, weights = seen["words"]
    for row, words in enumerate(BATCH["words"]):
        hidden = set(words[positions[row][weights[row] > 0]].tolist())
        assert len(hidden) == max(1, round(0.3 * words.max()))
    for hidden in seen["patches"][0].reshape(4, 5, 2):  # five of ten patches, in blocks of two by two: one and a bit
        blocks = [hidden[i : i + 2] for i in (0, 2, 4)]
        assert sum(block.any() and not block.all() for block in blocks) <= 1


def test_what_is_hidden_follows_the_config(monkeypatch):
    given = {}

    def watched(name, draw):
        return lambda *args, **options: given.update({name: options}) or draw(*args, **options)

    for name in ("mask_words", "mask_patches"):
        monkeypatch.setattr(bmm, name, watched(name, getattr(bmm, name)))
    terms_of(tiny(bmm={"word_ratio": 0.35, "patch_ratio": 0.6, "patch_block": 3}))
    assert given == {
        "mask_words": {"ratio": 0.35, "mask_id": MASK_ID, "vocab_size": 40},
        "mask_patches": {"grid": (4, 2), "ratio": 0.6, "block": 3},
    }


@pytest.mark.parametrize("rows, expected", [(0, [0, 1, 2, 3, 4, 5]), (1, [0]), (2, [0, 3]), (3, [0, 2, 4])])
def test_rows_picks_evenly_spaced_pairs(rows, expected):
    batch = make_batch(6)
    batch["erase"] = batch["erase"] + np.arange(18, dtype=np.int32).reshape(6, 3, 1)  # no two boxes alike
    _, seen = objective_of(tiny(bmm={"rows": rows})).select(batch)
    np.testing.assert_array_equal(seen["rows"], expected)
    np.testing.assert_array_equal(seen["images"], batch["images"][expected, 0])
    np.testing.assert_array_equal(seen["erase"], batch["erase"][expected, 0])
    np.testing.assert_array_equal(seen["ids"], batch["text"]["sentence"][expected])
    np.testing.assert_array_equal(seen["words"], batch["words"][expected])


@pytest.mark.parametrize("term, mlp", [("words", "mlp_txt"), ("patches", "mlp_vis")])
def test_the_gradient_of_reconstruction_reaches_the_shared_tower(term, mlp):
    weights = {"word_weight": float(term == "words"), "patch_weight": float(term == "patches")}
    objective = objective_of(tiny(mla={"weight": 0.0}, bmm=weights))
    gradient = jax.jit(jax.grad(lambda params: objective(params, BATCH, KEY)[0]))(params_of())
    size = jax.tree.map(lambda g: float(np.abs(g).max()), gradient)
    assert size["blocks"]["attn"]["qkv"]["kernel"] > 1e-4
    assert size["blocks"][mlp]["fc1"]["kernel"] > 1e-4
    # Each modality is rebuilt from the other as well: its embeddings, too, get their share.
    assert size["image_embedding"]["pos_embed"] > 1e-6
    assert size["text_embedding"]["position"] > 1e-6
    assert (size["image_embedding"]["mask_token"] > 0) == (term == "patches")
