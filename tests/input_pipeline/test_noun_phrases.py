"""tests/data/captions.json holds 60 captions in the manner of the three datasets, none of them theirs nor generated,
each with its phrases, and most with their clauses, as worked out by reading."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import wardrobe
from input_pipeline.noun_phrases import attribute_phrases, recognised_phrases
from input_pipeline.text_levels import clauses

CAPTIONS = json.loads((Path(__file__).parent.parent / "data/captions.json").read_text(encoding="utf-8"))
MANNERS = ("CUHK-PEDES", "ICFG-PEDES", "RSTPReid")


def test_the_captions_are_what_is_promised():
    assert len({record["caption"] for record in CAPTIONS}) == 60
    assert [sum(record["manner"] == manner for record in CAPTIONS) for manner in MANNERS] == [20, 20, 20]
    assert sum(record.get("dirty", False) for record in CAPTIONS) >= 12
    assert sum("clauses" in record for record in CAPTIONS) >= 20


@pytest.mark.parametrize("record", CAPTIONS, ids=lambda record: record["caption"][:40])
def test_the_captions_worked_out_by_hand(record):
    assert attribute_phrases(record["caption"]) == record["phrases"]
    assert "clauses" not in record or clauses(record["caption"]) == record["clauses"]


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        # A noun ends a phrase, and so do determiners and what comes before them.
        ("a blue cap and grey trousers and boots", ["blue cap", "grey trousers", "boots"]),
        ("a pair of black and white shoes", ["black and white shoes"]),
        ("a set of two keys and a kind of red poncho", ["red poncho"]),
        # Modifiers before one noun stay together, however they are joined.
        ("a white, black and grey, striped top", ["white, black and grey", "striped top"]),
        ("a black/white shirt", ["black/white shirt"]),
        ("dressed in all black, white shoes", ["black", "white shoes"]),
        ("in black, white and red shoes", ["black, white and red shoes"]),
        # Statements.
        ("her hair is long and black", ["long and black hair"]),
        ("a bag that is very big, shoes which are red", ["very big bag", "red shoes"]),
        ("She is young, slim and tall.", ["young, slim and tall"]),
        ("the shirt is black and shoes are white", ["black shirt", "white shoes"]),
        ("her top is a white blouse", ["top", "white blouse"]),
        ("his thingamajig is blue", ["blue thingamajig"]),
        ("hair tied back, sleeves rolled up", ["tied back hair", "rolled up sleeves"]),
        # Negations.
        ("without a hat or glasses, with no bag", ["without a hat or glasses", "no bag"]),
        ("He isn't carrying a bag.", ["isn't carrying a bag"]),
        # Words the lexicon lacks.
        ("a blue thingamajig", ["blue thingamajig"]),
        ("a frobnicated blue shirt", ["frobnicated blue shirt"]),
        ("standing in the street near a lamp with a red shirt", ["red shirt"]),
        ("somewhere in the street", ["somewhere", "street"]),
        ("a man crossing the street, a striking dress", ["man", "striking dress"]),
        # Spelling, case, repetition.
        ("T-shirt, t shirt, tee-shirt, knee-length skirt", ["T-shirt", "t shirt", "tee-shirt", "knee-length skirt"]),
        ("Red Cap, red cap, RED CAP", ["Red Cap"]),
        ("a woman’s black shoes, men’s boots", ["woman", "black shoes", "men’s boots"]),  # noqa: RUF001
        ("running shoes for running", ["running shoes"]),
        ("white shoes w/ a blue stripe", ["white shoes", "blue stripe"]),
        # Where there is no phrase at all.
        ("Between and  with", ["Between and with"]),
        ("мужчина в черном", ["мужчина в черном"]),
        ("?! \u200b", []),
        ("", []),
    ],
)
def test_the_rules_one_by_one(caption, phrases):
    assert attribute_phrases(caption) == phrases


def test_a_caption_without_a_known_word_is_told_from_others():
    assert recognised_phrases("somewhere in the street") == []
    assert recognised_phrases("a red thing in the street") == ["red thing"]


LEXICON = wardrobe.NOUNS | wardrobe.MODIFIERS | wardrobe.COLOURS | wardrobe.PARTICIPLES | wardrobe.VERBS
CLOSED = "a the his with in of and or , . ; / ' 's - is are that who no not very up back he she it all 的 <br> &nbsp;"
VOCABULARY = st.sampled_from(sorted(LEXICON | wardrobe.GERUNDS)) | st.sampled_from(CLOSED.split())
DESCRIPTIONS = st.lists(st.tuples(VOCABULARY, st.sampled_from(["", " ", " ", "  ", "\n"]))).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)


@settings(max_examples=500, deadline=None)
@given(st.text() | DESCRIPTIONS)
def test_any_text_gives_phrases_made_of_its_own_words(caption):
    phrases = attribute_phrases(caption)
    assert bool(phrases) == any(c.isalnum() for c in caption)
    assert len({phrase.lower() for phrase in phrases}) == len(phrases)
    for phrase in phrases:
        assert phrase == " ".join(phrase.split()) != ""
        assert all(word in caption for word in phrase.split())


def test_no_caption_takes_long():
    for part in (
        "red, ",
        "red and ",
        "very ",
        "tied up ",
        "no ",
        "no hat or ",
        "\\",
        "&#",
        "<",
        "that is ",
        "a-",
        "1.",
    ):
        start = time.process_time()
        attribute_phrases(part * 5000)
        clauses(part * 5000)
        assert time.process_time() - start < 5  # it takes 0.1; were it quadratic, it would take 20
