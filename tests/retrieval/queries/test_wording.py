import pytest

from ivt_jax.retrieval.queries.query import Split, Term, read_terms, split_sentence
from ivt_jax.retrieval.queries.wording import read_negations, rest_of


@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        ("a woman in a red coat without a bag", "a woman in a red coat", ["bag"]),
        ("a woman with a gun, without a hat or glasses", "a woman with a gun", ["hat", "glasses"]),
        ("a man with neither hat nor glasses", "a man", ["hat", "glasses"]),
        ("a man who isn't carrying a backpack, in blue jeans", "a man, in blue jeans", ["backpack"]),
        ("a woman with no hat and a red bag", "a woman and a red bag", ["hat"]),
        ("a person never wearing a hat; carrying a rifle", "a person; carrying a rifle", ["hat"]),
        ("a man without black or white shoes", "a man", ["black or white shoes"]),
        ("a woman wearing no shoes and carrying a bag", "a woman and carrying a bag", ["shoes"]),
        ("a man who has no hat", "a man", ["hat"]),
        ("a woman in a red coat and no hat, blue jeans", "a woman in a red coat, blue jeans", ["hat"]),
        ("a man walking with no shoes", "a man walking", ["shoes"]),
        ("a man without a hat, glasses or a bag", "a man", ["hat", "glasses", "bag"]),
        ("neither hat, glasses nor a bag", "", ["hat", "glasses", "bag"]),
        ("no hat/glasses", "", ["hat", "glasses"]),
        ("without hat, bag, and glasses", "", ["hat", "bag", "glasses"]),
        ("without a hat, red and black shoes", "red and black shoes", ["hat"]),
        ("no hat, red or black coat", "red or black coat", ["hat"]),
        ("red, not black coat", "red coat", ["black coat"]),
        ("a woman with dark but not black hair", "a woman with dark hair", ["black hair"]),
        ("a man in black, no red coat", "a man in black", ["red coat"]),
        ("a man who does not wear a red jacket but a blue one", "a man but a blue one", ["red jacket"]),
        ("a red coat (no hat)", "a red coat", ["hat"]),
        ("a man without a hat, in a red coat or jacket", "a man, in a red coat or jacket", ["hat"]),
        ("no bag, in jeans or black trousers", "in jeans or black trousers", ["bag"]),
        ("a woman without glasses, with a red bag or a backpack", "a woman, with a red bag or a backpack", ["glasses"]),
        (
            "a man with no beard, in a dark suit, carrying a briefcase or laptop bag",
            "a man, in a dark suit, carrying a briefcase or laptop bag",
            ["beard"],
        ),
        ("a man who isn\u2019t wearing a red coat", "a man", ["red coat"]),
        ("she doesn\u2019t wear a hat", "", ["hat"]),
        ("a black suit minus the tie", "a black suit", ["tie"]),
        ("no hat: red coat", "red coat", ["hat"]),
        (
            "a man in blue jeans, no coat, no bag and white shoes",
            "a man in blue jeans, and white shoes",
            ["coat", "bag"],
        ),
        ("a man wearing anything but a red coat", "a man", ["red coat"]),
        ("jeans rather than a coat", "jeans", ["coat"]),
        ("a man in black, not in white", "a man in black", ["white"]),
        ("not tall, red coat", "red coat", ["tall"]),
        ("a gun, no hat", "a gun", ["hat"]),
        ("he is not wearing glasses", "", ["glasses"]),
        ("No hat!", "", ["hat"]),
    ],
)
def test_negations_are_taken_out(text, wanted, unwanted):
    assert read_negations(text) == (wanted, unwanted)


@pytest.mark.parametrize(
    "text",
    [
        "there is no doubt he wears a coat",
        "une femme sans manteau",
        "a man  in red ,and blue",
        "",
        "!!!",
        "no",
        "never without a backpack",
        "a man never seen without a red hat",
        "not only a red coat but also a blue bag",
        "isn\u2019t only a red coat",
        "a man who is not smiling wearing a hat",
        "a man with shoes that do not match his red shirt",
    ],
)
def test_a_sentence_without_a_negation_stays_as_it_is(text):
    assert read_negations(text) == (text, [])


def test_a_negation_within_what_is_unwanted_is_wanted():
    assert read_terms([Term("a coat without a belt", -0.5)]) == (Term("a coat", -0.5), Term("belt", 0.5))


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("a woman with a gun", "gun"),
        ("a man in a red coat walking next to a car", "walking next car"),
        ("a man wearing a red coat and carrying a bag", ""),
        ("une femme avec un manteau rouge", ""),  # the whole is a phrase
        ("", ""),
    ],
)
def test_words_of_no_phrase_are_left(text, rest):
    assert rest_of(text) == rest


def test_a_sentence_splits_into_terms_and_rest():
    assert split_sentence("a woman with a gun, without a hat") == Split((Term("woman"), Term("hat", -1.0)), "gun")
    assert split_sentence("no hat") == Split((Term("hat", -1.0),), "")
    assert split_sentence("!!!") == Split((), "")
