"""What can be asked of an index, and what is refused before a model is read."""

import contextlib
import math
import re

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.retrieval.queries.query import MAX_PHRASES, MAX_TERMS, Query, Term, check, parse_term, phrases_of
from ivt_jax.retrieval.stores.where import Comparison

FIELDS = {"camera": "integer", "track": "text"}


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("blue backpack", ("blue backpack", 1.0)),
        ("2: blue backpack", ("blue backpack", 2.0)),
        (" 0.5 :blue backpack ", ("blue backpack", 0.5)),
        (".25: hat", ("hat", 0.25)),
        ("-2: glasses", ("glasses", -2.0)),
        ("2:", ("", 2.0)),
        ("2: hat: red", ("hat: red", 2.0)),
        ("...: hat", ("...: hat", 1.0)),
        ("man: 2 bags", ("man: 2 bags", 1.0)),
        ("12:30 on the clock", ("12:30 on the clock", 1.0)),
        ("2:\uff11 coat", ("\uff11 coat", 2.0)),  # a full-width digit
        ("2\u00a0: hat", ("hat", 2.0)),  # a no-break space, as in French
    ],
)
def test_a_weight_stands_before_a_colon(text, term):
    assert parse_term(text) == term


# The minus sign of word processors, and the Arabic 2.
@pytest.mark.parametrize("weight", ["2,5", "1e1", "1.2.3", "-1,", "- 2", "1/2", "\u22122", "\u0662"])
def test_a_number_before_a_colon_that_is_no_weight_is_refused(weight):
    with pytest.raises(UserError, match=f'^{re.escape(weight)} before ":" is no weight: write a number such as 2.5$'):
        parse_term(f"{weight}: hat")


@pytest.mark.parametrize("text", [" ", "-", ",", "1", "1.", "1:", "- 1", "1e1", "1/", "1x:", " :", ": 1"])
@pytest.mark.parametrize("end", ["", "x:", "1:", ":"])
def test_a_term_may_have_any_length(text, end):
    """With a megabyte, a pattern that takes quadratic time takes hours."""
    with contextlib.suppress(UserError):
        parse_term(text * 1_000_000 + end)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (Query(), "the query is empty"),
        (Query(where="camera = 3"), "the query is empty"),
        (Query((Term(" \n"),)), "the sentence is empty: describe a person"),
        (Query((Term("red"), Term(""))), "the sentence is empty: describe a person"),
        (Query((Term("caf\udce9"),)), "not UTF-8 text"),
        (Query((Term("caf\ud800"),)), "not UTF-8 text"),
        (Query((Term("caf\udfff"),)), "not UTF-8 text"),
        (Query((Term("red", 0.0),)), "a weight of 0 is out of bounds: from 0.001 to 1000"),
        (Query((Term("red", math.nan),)), "a weight of nan is out of bounds"),
        (Query((Term("red", -math.inf),)), "a weight of -inf is out of bounds"),
        (Query((Term("red", 1e-4),)), "a weight of 0.0001 is out of bounds"),
        (Query(like=3, image_weight=0.0), "a weight of 0 is out of bounds"),
        (Query(image=b"", like=3), "the query has an image and a row of the index; choose one of them"),
        (Query((Term("red"),) * (MAX_TERMS + 1)), "the query has 17 sentences; the limit is 16"),
        (Query((Term("red"),), where="colour = 1"), "colour"),
        (Query((Term("red"),), where="camera = 'x'"), "a whole number"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(query, told):
    with pytest.raises(UserError) as refused:
        check(query, FIELDS)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_a_missing_image_a_field_and_a_similarity_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"crop\.jpg is not a file"):
        check(Query(image=tmp_path / "crop.jpg"), FIELDS)
    with pytest.raises(UserError, match='no field "colour" to group by; it has: camera, track'):
        check(Query(like=0), FIELDS, "colour")
    for distinct in (0.0, 1.5, math.nan):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            check(Query(like=0), FIELDS, "", distinct)


def test_what_can_be_asked_gives_the_filter(tmp_path):
    (tmp_path / "crop.jpg").touch()
    image = tmp_path / "crop.jpg"
    assert check(Query((Term("red"),), image, where=" camera = 3"), FIELDS, "track", 0.98) == Comparison(
        "camera", "=", 3
    )
    assert check(Query((Term("red", -2.0),), where=" "), FIELDS) is None
    assert check(Query(image=b"x", image_weight=-1.0), {}) is None


def test_phrases_are_those_of_all_terms_and_none_comes_twice():
    terms = (Term("A man in a red hoodie, with a blue backpack."), Term("Red Hoodie"), Term("glasses", -2.0))
    wanted = {"man": True, "red hoodie": True, "blue backpack": True, "glasses": False}
    assert phrases_of(terms) == wanted and [*phrases_of(terms)] == [*wanted]
    assert phrases_of(()) == {}


def test_phrases_of_a_query_have_the_scenery():
    terms = (Term("A man in a red hoodie next to a white car on a grey street."), Term("green trees", -1.0))
    assert phrases_of(terms) == {
        "man": True, "red hoodie": True, "white car": True, "grey street": True, "green trees": False
    }  # fmt: skip


def test_phrases_of_a_sentence_without_end_are_bounded():
    colours = ("red", "blue", "green", "black", "white")
    things = ("hat", "coat", "bag", "shirt", "shoes", "skirt", "scarf", "jacket")
    every = [f"{colour} {thing}" for colour in colours for thing in things]
    found = phrases_of([Term(", ".join(every) + ". " + "x" * 1_000_000)])
    assert found == dict.fromkeys(every[:MAX_PHRASES], True)


@pytest.mark.parametrize("weight", [0.001, -0.001, 1000.0, -1000.0])
def test_the_ends_of_the_allowed_weights_are_allowed(weight):
    assert check(Query((Term("red", weight),)), FIELDS) is None
    assert check(Query(like=3, image_weight=weight), FIELDS) is None
    for beyond in (0.99 * weight, 1.01 * weight):
        if not 0.001 <= abs(beyond) <= 1000:
            with pytest.raises(UserError, match="out of bounds"):
                check(Query((Term("red", beyond),)), FIELDS)


def test_sixteen_sentences_and_a_similarity_of_1_are_allowed():
    assert check(Query((Term("red"),) * 16), FIELDS) is None
    assert check(Query(like=3), FIELDS, "", 1.0) is None


def test_phrases_come_from_the_first_2000_characters():
    text = "red hat, ".ljust(1992) + "blue bag"
    assert len(text) == 2000 and [*phrases_of([Term(text)])] == ["red hat", "blue bag"]
    assert "blue bag" not in phrases_of([Term(" " + text)])
