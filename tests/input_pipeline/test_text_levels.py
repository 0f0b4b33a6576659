import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.annotations import read_annotations
from input_pipeline.noun_phrases import attribute_phrases
from input_pipeline.text_levels import LEVELS, PHRASE_RULES, clauses, draw_levels, main, phrase, sentence, words


def drawn(draw, caption, times=300):
    rng = np.random.default_rng(0)
    return {draw(caption, rng) for _ in range(times)}


def test_the_sentence_is_the_caption_with_its_white_space_collapsed():
    assert sentence("  A man\n in\tblack. ") == "A man in black."


@pytest.mark.parametrize(
    ("caption", "candidates"),
    [
        # Of each sentence the longest comma part, and the rest of the parts joined again.
        (
            "The girl wears a yellow raincoat, black boots, a hat. She looks down.",
            {"The girl wears a yellow raincoat", "black boots, a hat", "She looks down"},
        ),
        # The longest part need not be the first, and what is no longer than 5 characters does not count.
        ("Tall, a man carrying two suitcases.", {"a man carrying two suitcases"}),
        ("Jeans, brown leather jacket", {"brown leather jacket"}),
        ("Jacket, brown leather boots", {"brown leather boots", "Jacket"}),
        # The parts of a sentence are either the longest or the rest: never two of three by themselves.
        ("white shoes, black skirt, hat", {"white shoes", "black skirt, hat"}),
        # Nothing is long enough: the whole caption.
        ("A man.", {"A man."}),
        ("...", {"..."}),
        # "bald" is the longest part, but short; the rest together is long enough.
        ("Old, fat, bald", {"Old, fat"}),
    ],
)
def test_phrases_are_the_released_candidates(caption, candidates):
    assert drawn(phrase, caption) == candidates


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        # Things worn under one verb stay together; without a verb each stands for itself.
        ("She wears black boots, a long, red coat, a hat.", ["She wears black boots, a long, red coat, a hat"]),
        ("black boots, a long, red coat, hat", ["black boots", "a long, red coat"]),
        # Six characters are enough, five are not.
        ("black boots, jacket", ["black boots", "jacket"]),
        ("black boots, skirt", ["black boots"]),
        # Relative clauses, "while" and "but" leave their joint out.
        (
            "A man who is tall stands while texting, but he looks up.",
            ["is tall stands", "texting", "he looks up"],
        ),
        # "and" before a verb, a preposition or a new subject of its own.
        (
            "He has a hat and glasses and wears boots and his coat is red",
            ["He has a hat and glasses", "wears boots", "his coat is red"],
        ),
        ("His shirt and shoes are white", ["His shirt and shoes are white"]),
        # Nothing is long enough.
        ("A man.", ["A man."]),
        ("He. She! It?", ["He. She! It?"]),
        (" ... ", ["..."]),
        ("  ", []),
    ],
)
def test_clauses_by_hand(caption, parts):
    assert clauses(caption) == parts


def test_the_phrase_level_draws_the_clauses_where_it_is_told_to():
    caption = "The girl wears a hat, black boots. She looks down, carrying a bag."
    expected = {"The girl wears a hat, black boots", "She looks down", "carrying a bag"}
    assert drawn(lambda text, rng: draw_levels(text, rng, ("phrase",), (), "clauses")["phrase"], caption) == expected
    assert drawn(lambda text, rng: phrase(text, rng, rule="released"), caption) == drawn(phrase, caption)


def test_the_word_level_draws_every_non_empty_subset_in_order():
    a, b, c = "red cap", "blue jeans", "white shoes"
    expected = {a, b, c, f"{a}, {b}", f"{a}, {c}", f"{b}, {c}", f"{a}, {b}, {c}"}
    assert drawn(words, "a red cap, blue jeans, with white shoes") == expected


@pytest.mark.parametrize(
    ("caption", "attributes", "expected"),
    [
        ("A man, red cap. He walks, tall", (), {"red cap", "He walks"}),  # "A man" has five characters
        ("A man, scarfs.", (), {"scarfs"}),  # six
        ("A man, tall.", (), {"A man, tall."}),  # no part is long enough
        ("A man, red cap.", ("red cap", "black shoes"), {"red cap", "black shoes", "red cap, black shoes"}),
    ],
)
def test_the_released_word_level_is_a_comma_part_where_no_attributes_are_given(caption, attributes, expected):
    draw = lambda text, rng: draw_levels(text, rng, ("word",), attributes, word_rule="released")["word"]  # noqa: E731
    assert drawn(draw, caption) == expected


def test_each_phrase_is_kept_half_of_the_time():
    """Of three phrases all are kept in 1 of 8 draws, a certain one alone in 1/8, and a third of the 1/8 with none."""
    rng, names = np.random.default_rng(1), ("red cap", "blue jeans", "white shoes")
    drawn = [words("", rng, names) for _ in range(8000)]
    for text, share in (
        (", ".join(names), 1 / 8),
        ("red cap", 1 / 6),
        ("white shoes", 1 / 6),
        ("red cap, blue jeans", 1 / 8),
    ):
        assert abs(drawn.count(text) - 8000 * share) < 5 * np.sqrt(8000 * share * (1 - share))


def test_of_a_caption_without_end_the_first_ten_thousand_characters_are_read():
    caption = "\n" * 50 + "a red cap, " + "x" * (10_000 - 11 - 9) + " hat, end, blue jeans"
    levels = [draw_levels(caption, np.random.default_rng(seed)) for seed in range(20)]
    for texts in levels:
        assert texts["sentence"].startswith("a red cap, xx") and texts["sentence"].endswith("x hat, end")
        assert not any("jeans" in text for text in texts.values())


def test_without_attribute_phrases_the_word_level_is_the_caption():
    assert drawn(words, "with  it?") == {"with it?"}


def test_levels_come_in_the_order_asked_and_repeat_with_the_generator():
    caption = "A man with brown hair, a checked shirt, long trousers. He carries a blue umbrella, and smiles."
    levels = ("word", "sentence", "phrase")
    first = draw_levels(caption, np.random.default_rng(3), levels)
    assert tuple(first) == levels
    assert first == draw_levels(caption, np.random.default_rng(3), levels)
    others = [draw_levels(caption, np.random.default_rng(seed), levels) for seed in range(10)]
    assert any(other != first for other in others)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text("a man,. wears&black;\n"), st.integers(0, 2**32), st.sampled_from(PHRASE_RULES))
def test_any_text_gives_text_at_every_level_and_the_same_again(caption, seed, rule):
    texts, again = (draw_levels(caption, np.random.default_rng(seed), LEVELS, (), rule) for _ in range(2))
    assert texts == again
    assert all(bool(text.strip()) == bool(caption.strip()) for text in texts.values())


def test_attributes_that_the_dataset_gives_take_the_place_of_the_captions_own():
    rng = np.random.default_rng(0)
    given = ("a red coat", "long hair")
    got = {draw_levels("A man in black, with a bag.", rng, ("sentence", "word"), given)["word"] for _ in range(100)}
    assert got == {"a red coat", "long hair", "a red coat, long hair"}


def dataset(root, **changed):
    """Three captions of two images to train with, one of which an image record of its own repeats, and a test image."""
    (root / "imgs").mkdir()
    records = [
        {"id": 5, "img_path": "a.jpg", "captions": ["A man in a red coat.", "He, tall, walks."], "split": "train"},
        {"id": 6, "img_path": "b.jpg", "captions": ["的 Blue jeans", " "], "split": "train"},
        {"id": 5, "img_path": "a.jpg", "captions": ["A street"], "split": "train"},
        {"id": 7, "img_path": "c.jpg", "captions": ["A woman with a bag", ""], "split": "test"} | changed,
    ]
    (root / "data_captions.json").write_text(json.dumps(records))
    return root


def write_levels(root, *arguments):
    return main(["--dataset=rstp", f"--root={root}", f"--out={root}/levels.json", *arguments])


def test_the_file_has_the_shape_of_the_release_and_is_read_again(tmp_path, capsys):
    root = dataset(tmp_path)
    assert write_levels(root) == 0
    out = capsys.readouterr().out
    assert out == f"{root}/levels.json: 6 captions, 1.2 phrases each; 2 have no word of the lexicon\n"
    document = json.loads((root / "levels.json").read_text())
    assert list(document) == ["train", "test"]
    assert document["train"][0] == {
        "id": 5,
        "file_path": "a.jpg",
        "captions": "A man in a red coat.",
        "processed_tokens": ["a", "man", "in", "a", "red", "coat"],
        "att": {"0": "man", "1": "red coat"},
        "clauses": ["A man in a red coat"],
    }
    raw, again = (read_annotations(root / name, "rstp_reid").records for name in ("data_captions.json", "levels.json"))
    assert [(r.image_path, r.person_id, r.split, r.captions) for r in again] == [
        (r.image_path, r.person_id, r.split, r.captions) for r in raw
    ]
    for record in again:
        assert [list(phrases) for phrases in record.attributes] == [attribute_phrases(c) for c in record.captions]


def test_attributes_that_the_dataset_gives_are_written_as_they_are(tmp_path):
    root = dataset(tmp_path, att={"hair": "long hair", "bag": "a bag"})
    assert write_levels(root) == 0
    written = json.loads((root / "levels.json").read_text())["test"]
    assert [record["att"] for record in written] == [{"0": "long hair", "1": "a bag"}] * 2


def test_mistakes_take_one_line(tmp_path, capsys):
    root = dataset(tmp_path)
    assert write_levels(root, f"--out={root}/none/levels.json") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {root}/none/levels.json cannot be written: No such file or directory"
    )
    assert write_levels(root, "--out", str(root / "data_captions.json")) == 2
    assert capsys.readouterr().err == (
        f"error: {root}/data_captions.json exists already; remove it, or name another file with --out\n"
    )
    assert write_levels(root, f"--root={root}/none") == 2
    assert capsys.readouterr().err.startswith(f"error: {root}/none/data_captions.json not found")
    assert sorted(path.name for path in root.iterdir()) == ["data_captions.json", "imgs"]


@pytest.mark.parametrize("missing", ["dataset", "root", "out"])
def test_every_argument_is_demanded(tmp_path, capsys, missing):
    given = {"dataset": "rstp", "root": tmp_path, "out": tmp_path / "levels.json"}
    with pytest.raises(SystemExit, match="2"):
        main([f"--{name}={value}" for name, value in given.items() if name != missing])
    assert f"the following arguments are required: --{missing}" in capsys.readouterr().err


def test_the_draws_of_a_generator_never_change():
    """A run that an older version began continues with the same texts: version 0.1 draws these."""
    caption = "A man in a red coat, blue jeans, white shoes. He carries a bag, and smiles."
    drawn = draw_levels(caption, np.random.default_rng(5))
    assert drawn == {"sentence": caption, "phrase": "He carries a bag", "word": "blue jeans, white shoes, bag"}
