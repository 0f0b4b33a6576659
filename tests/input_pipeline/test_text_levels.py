import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.text_levels import LEVELS, attribute_phrases, draw_levels, phrase, sentence, words


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
    ("caption", "phrases"),
    [
        (
            "The tall man is wearing a grey coat, and he has a bag on his back.",
            ["The tall man", "wearing a grey coat", "a bag", "his back"],
        ),
        ("A lady in a long green dress with white dots", ["A lady", "a long green dress", "white dots"]),
        ("Black and white shoes; a pair of jeans.", ["Black and white shoes", "a pair of jeans"]),
        ("a blue cap and grey trousers and boots", ["a blue cap", "grey trousers and boots"]),
        ("She's young, and her hair is tied.", ["young", "her hair", "tied"]),
        ("Someone who looks at a phone while walking", ["Someone", "looks", "a phone", "walking"]),
        ("Between and with", []),
        ("?!", []),
    ],
)
def test_attribute_phrases_by_hand(caption, phrases):
    assert attribute_phrases(caption) == phrases


def test_the_word_level_draws_every_non_empty_subset_in_order():
    a, b, c = "a red cap", "blue jeans", "white shoes"
    expected = {a, b, c, f"{a}, {b}", f"{a}, {c}", f"{b}, {c}", f"{a}, {b}, {c}"}
    assert drawn(words, "a red cap, blue jeans, with white shoes") == expected


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
@given(st.text(), st.integers(0, 2**32))
def test_any_text_gives_text_at_every_level(caption, seed):
    texts = draw_levels(caption, np.random.default_rng(seed), LEVELS)
    assert all(bool(text.strip()) == bool(caption.strip()) for text in texts.values())


def test_attributes_that_the_dataset_gives_take_the_place_of_the_captions_own():
    rng = np.random.default_rng(0)
    given = ("a red coat", "long hair")
    got = {draw_levels("A man in black, with a bag.", rng, ("sentence", "word"), given)["word"] for _ in range(100)}
    assert got == {"a red coat", "long hair", "a red coat, long hair"}
