"""The model card: what is recorded, no more."""

import copy
import re

import pytest

from configs import cuhk
from ivt_jax.export.card import card

SCORES = {
    "t2i": {"R1": 41.5, "R5": 60.0, "R10": 71.25, "mAP": 38.0, "mINP": 20.0},
    "i2t": {"R1": 50.0, "R5": 66.0, "R10": 77.0, "mAP": 44.0, "mINP": 30.0},
    "queries": 6156, "gallery": 3074, "persons": 1000,
}  # fmt: skip
SCORES["interval"] = {w: {m: [v - 1.5, v + 2] for m, v in SCORES[w].items()} for w in ("t2i", "i2t")}


@pytest.fixture
def record(config):
    """What config.json holds of a run on CUHK-PEDES that was evaluated."""
    config = copy.deepcopy(config.to_dict())
    config["data"]["name"] = "cuhk_pedes"
    return {
        "config": config, "annotations": "ab12", "revision": "cafe", "step": 12345,
        "scores": {"val": SCORES, "test": SCORES},
    }  # fmt: skip


def test_figures_stand_with_their_intervals(record):
    text = card(record, ["orbax"])
    row = "| text to image | 41.50 (40.00 to 43.50) | 60.00 (58.50 to 62.00) | 71.25 (69.75 to 73.25) | 38.00 (36.50 "
    assert text.count(row) == 2 and "CUHK-PEDES, test, protocol `standard`: 6,156 captions, 3,074 images" in text
    assert "Not evaluated" not in text and "its step: 12,345." in text.lower()


def test_what_was_not_evaluated_is_said(record):
    record["scores"] = {}
    text = card(record, ["orbax"])
    assert "Not evaluated on test." in text and "| text to image" not in text


@pytest.mark.parametrize(
    ("select_on", "splits", "expected"),
    [
        ("val", ("val", "test"), "with the best R@1 (text to image) on validation"),
        ("val", ("test",), "the last one: there is no validation split"),
        ("val", (), "on validation (the last one if none was evaluated)"),
        ("test", ("val", "test"), "on the TEST split itself, so the test scores are too high"),
    ],
)
def test_how_the_checkpoint_was_chosen(record, select_on, splits, expected):
    record["config"]["train"]["select_on"] = select_on
    record["scores"] = {split: SCORES for split in splits}
    assert expected in card(record, ["orbax"])


def test_real_data_come_with_their_sizes_and_terms(record):
    text = card(record, ["orbax"])
    assert "| train | 11,003 | 34,054 | 68,126 |" in text and "Those terms bind" in text and "`ab12`" in text
    record["config"]["data"]["name"] = "pedes_synth"
    text = card(record, ["orbax"])
    assert "its persons are drawn" in text and "show real people" not in text and "| train |" not in text
    record["config"]["data"] |= {"name": "own", "root": "data/shop.csv"}
    text = card(record, ["orbax"])
    assert "Trained on shop; SHA-256" in text and "consent of the people" in text and "drawn" not in text
    record["config"]["data"]["title"] = "The shop"
    assert "# IVT, trained on The shop" in card(record, ["orbax"])


def test_of_converted_weights_nothing_is_made_up(record):
    del record["annotations"]
    record |= {"weights": {"source": "release", "files": {"ivt.pth": "ff00"}}, "scores": {}, "step": 0}
    text = card(record, ["orbax"])
    assert "- `ivt.pth`, SHA-256 `ff00`" in text and "trained on is not recorded" in text
    assert "CUHK-PEDES" not in text and "## Recipe" not in text and "chosen" not in text


def test_the_recipe_is_the_config(record):
    record["config"]["train"] |= {"init_from": "weights/vit-bert", "steps": 0, "first_epoch": 1, "epochs": 60}
    text = card(record, ["orbax"])
    assert text.partition("## Recipe\n\n")[2].startswith(
        """\
- Tower: width 12, 2 blocks of 3 heads; images of 14x10 pixels, patches of 6 at stride 4
- Started from other weights, whose origin is not recorded; their licence and their limits apply, seed 1234
- Matching: loss cmpm, temperature 1.0
- Multi-level alignment (MLA): weight 1.0, levels sentence, phrase, word, 1 view(s)
- Bidirectional mask modelling (BMM): alignment fast; weight of word reconstruction 10.0, of patch reconstruction 2.0
- muon, schedule smooth, learning rate 0.004; 32 pairs a step, epochs 1 to 60; activations in float32
- Code: revision `cafe`

`config.json` has every key.

## Selection
"""
    )


CLIP = {
    "source": "clip", "files": {},
    "hub": {"weights": {"repository": "openai/clip-vit-base-patch16", "revision": "c0ffee",
                        "files": {"model.safetensors": "ff00"}}},
}  # fmt: skip
LISTED = """\
- [openai/clip-vit-base-patch16](https://huggingface.co/openai/clip-vit-base-patch16), commit `c0ffee`
- `model.safetensors`, SHA-256 `ff00`
"""


@pytest.fixture
def two_towers(record):
    """What config.json holds of CLIP, fine-tuned on CUHK-PEDES."""
    start = {"folder": "weights/clip", "step": 0, "weights": CLIP}
    return {**record, "config": cuhk.get_config("clip").to_dict(), "start": start}


def test_two_towers_are_not_one_transformer(two_towers):
    text = card(two_towers, ["orbax"])
    assert "# An image tower and a text tower, trained on CUHK-PEDES\n" in text
    assert "transformers that share no parameters" in text and "One transformer" not in text and "IVT" not in text
    assert text.partition("## Recipe\n\n")[2].startswith(
        """\
- Image tower: width 768, 12 blocks of 12 heads, pooling class; images of 384x128 pixels, patches of 16 at stride 16
- Text tower: width 512, 12 blocks of 8 heads, pooling end, causal attention; texts of up to 77 tokens
- Projection: embeddings of 512 numbers
- Started from the weights above, seed 1234
- Matching: loss sdm, temperature 0.02
- Multi-level alignment (MLA): weight 1.0, levels sentence, 1 view(s)
- Identity loss: weight 1.0
- Bidirectional mask modelling (BMM): alignment off; weight of word reconstruction 0.0, of patch reconstruction 0.0
- adam, schedule smooth, learning rate 1e-05; 64 pairs a step, epochs 1 to 60; activations in bfloat16
- Factors of the learning rate, by parameter: `^id_head/bias=2.5`, `^id_head/=5`
- Frozen parameters: `^similarity/`
- Code:"""
    )


def test_the_start_is_named_by_its_repository_and_its_licence_applies(two_towers):
    text = card(two_towers, ["orbax"])
    assert f"converted by `ivt_jax.convert` (`--source=clip`):\n{LISTED}" in text and "weights/clip" not in text
    assert "Their licence and their limits apply, besides those of this model:" in text


def test_a_start_that_was_trained_is_named_with_its_own_start(two_towers):
    two_towers["start"] = {"step": 3000, "annotations": "cd34", "data": "icfg_pedes", "start": two_towers["start"]}
    text = card(two_towers, ["orbax"])
    trained = "- step 3,000 of a training on ICFG-PEDES, SHA-256 of its annotations `cd34`\n"
    assert trained in text and text.index(trained) < text.index(LISTED)


def test_every_link_of_a_chain_of_starts_is_named(two_towers):
    """Fine-tuned from a run, which was trained from a run, which was trained from converted weights."""
    first = {"step": 100000, "annotations": "cd34", "data": "icfg_pedes", "start": two_towers["start"]}
    two_towers["start"] = {"step": 3000, "annotations": "ef56", "data": "rstp_reid", "start": first}
    text = card(two_towers, ["orbax"]).partition("## Start")[2].partition("## Recipe")[0]
    links = [
        "- step 3,000 of a training on RSTPReid, SHA-256 of its annotations `ef56`\n",
        "- step 100,000 of a training on ICFG-PEDES, SHA-256 of its annotations `cd34`\n",
        f"- weights of other programs, converted by `ivt_jax.convert` (`--source=clip`):\n{LISTED}",
    ]
    places = [text.index(link) for link in links]
    assert places == sorted(places) and "do not record" not in text and "does not record" not in text


def test_a_start_of_unknown_origin_is_said(two_towers):
    two_towers["start"] = {"folder": "/home/me/x", "step": 0}
    text = card(two_towers, ["orbax"])
    assert "- a folder that does not record their origin\n\n## Recipe" in text and "/home/me" not in text


def test_converted_weights_are_named_by_their_repository(two_towers):
    """Also those of an export that was converted again."""
    del two_towers["annotations"], two_towers["start"]
    two_towers["weights"] = CLIP
    text = card(two_towers, ["orbax"])
    assert (
        "# An image tower and a text tower, from weights of other programs\n" in text and f"apply.\n\n{LISTED}" in text
    )
    two_towers["weights"] = {"source": "export", "files": {"mine.safetensors": "aa11"}, "before": CLIP}
    assert f"apply.\n\n- `mine.safetensors`, SHA-256 `aa11`\n{LISTED}" in card(two_towers, ["orbax"])


def test_options_are_in_the_recipe(record):
    record["config"]["model"] |= {"relative_positions": True, "projection": 6}
    record["config"]["match"]["temperature"] = 0.0
    text = card(record, ["orbax"])
    assert "- Projection: embeddings of 6 numbers\n- Relative positions in attention\n- Started from random" in text
    assert "- Matching: loss cmpm, the model's own scale\n" in text


def test_the_losses_of_pre_training_are_in_the_recipe(record):
    record["config"]["match"] |= {"loss": "itc", "temperature": 0.5, "learned": True}
    record["config"]["itm"]["weight"] = 1.0
    text = card(record, ["orbax"])
    assert "- Matching: loss itc, temperature 0.5 at the start, then learned\n" in text
    assert "- Image-text matching (ITM): weight 1.0\n" in text


def test_a_run_of_an_older_version_has_the_defaults_of_later_keys(record):
    text = card(record, ["orbax"])
    for key in ("match", "id", "itm"):
        del record["config"][key]
    assert card(record, ["orbax"]) == text


def test_the_front_matter_leaves_the_licence_to_the_user(record):
    front = card(record, ["orbax"]).split("---\n")[1]
    assert re.match(r"license: other #", front) and "library_name: ivt_jax" in front


def test_only_what_was_written_is_explained(record):
    assert "safetensors" not in card(record, ["orbax"]) and "Orbax" not in card(record, ["safetensors"])
    for formats in (["orbax"], ["safetensors"], ["orbax", "safetensors"]):
        assert card(record, formats).count("```python") == len(formats)
        assert "python -m ivt_jax.search --workdir=FOLDER" in card(record, formats)


@pytest.mark.parametrize("form", ["orbax", "stablehlo", "saved_model", "onnx"])
def test_the_card_states_which_rows_give_nan(record, form):
    text = " ".join(card(record, [form]).split())
    assert "A row of ids gives NaN if it has an id outside of the vocabulary or begins with padding." in text
