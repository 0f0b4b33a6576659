import pytest

from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.retrieval.queries.spelling import suggest

SHIPPED = load_tokenizer("")


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a wmoan in a rde coat", "a woman in a red coat"),
        ("Womn with blakc trosers, carying a bckpack", "Woman with black trousers, carrying a backpack"),
        ("whtie shoes and brwn hiar", "white shoes and brown hair"),
        ("a bleu coat", "a blue coat"),
        ("A RDE COAT", "A RED COAT"),
        ("teh coat", "the coat"),
        ("a tall wman with glases", "a tall woman with glasses"),
        ("a redd coatt and a skir", "a red coat and a skirt"),
        ("a boyy with a bagg and a capp", "a boy with a bag and a cap"),
    ],
)
def test_slips_of_one_letter_are_mended(text, mended):
    assert suggest(text, SHIPPED) == mended


@pytest.mark.parametrize(
    "text",
    [
        "a woman in a red coat",
        "two turtlenecks",
        "Xylophone",
        "une femme avec un manteau rouge",
        "grün",
        "12 a!",
        "",
        "a man who isn't wearing a hat",
        "he doesn\u2019t wear a coat",
        "a hi-vis vest",
        "a non-red coat",
        "a coatless man",
        "a man with a gun",
        "a Nike shirt",
        "a man in Paris",
        "xqzv " * 60 + "a rde coat",
    ],
)
def test_known_far_and_foreign_words_stay(text):
    assert suggest(text, SHIPPED) == ""


def test_no_word_is_suggested_that_the_model_does_not_read():
    class Reads:
        def unread(self, text, length):
            return [text] if text == "red" else [], "", False

    assert suggest("a rde caot", Reads()) == "a rde coat"
