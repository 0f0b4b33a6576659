"""Captions as real files have them, and the kind of fault that each must give."""

import pytest

from input_pipeline import doctor
from input_pipeline.annotations import Record
from input_pipeline.caption_faults import caption_faults
from input_pipeline.tokenizer import load_tokenizer

PLACEHOLDER = "captions have only a placeholder, such as nan, null, none or n/a"
STATEMENT = "captions have statements of a program: calls, lists, assignments"
CODE = "captions have pieces of code: tags, braces, escapes"
ADDRESS = "captions have an address or the name of a file"
INVISIBLE = "captions have invisible characters: zero-width, direction marks, soft hyphens"
LOST = "captions have replacement, private-use or unassigned characters"
CONTROL = "captions have control characters"
STYLED = "captions have full-width or styled letters or marks, which tokenizers seldom know"
MISREAD = "captions were read in a wrong encoding, UTF-8 as Latin-1"
FULL_WIDTH = "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in "A man in a red coat.")


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        *((text, PLACEHOLDER) for text in ("nan", "NaN", " null ", "None", "n/a", "N/A.", "#N/A", "<NA>", "[null]")),
        *((text, "captions have no letter") for text in ("12", "...", "-", "3.5", "\U0001f468")),
        ('print("A man in black.")', STATEMENT),
        ("print(caption)", STATEMENT),
        ("for caption in captions:\n  print(caption)", STATEMENT),
        ("import numpy as np", STATEMENT),
        ("from os import path", STATEMENT),
        ("df.head()", STATEMENT),
        ("caption = 'A man'", STATEMENT),
        ("['A man in black.', 'He walks.']", STATEMENT),
        ("if a == b then a man", STATEMENT),
        ("<p>A man</p>", CODE),
        ("cam_a/000_45.jpg", ADDRESS),
        ("see https://example.org/a for a man", ADDRESS),
        ("I'm sorry, but I can't help with that.", "captions have the refusal of a language model"),
        ("Unable to describe the person in this image.", "captions have the refusal of a language model"),
        ("As an AI language model, I see a man.", "captions have the refusal of a language model"),
        ("A man\u00e2\u20ac\u2122s coat.", MISREAD),
        ("A man in a caf\u00c3\u00a9.", MISREAD),
        (FULL_WIDTH, STYLED),
        ("A man in black\uff0c with a bag.", STYLED),
        ("A \ufb01ne coat.", STYLED),
        ("A \U0001d42b\U0001d41e\U0001d41d coat.", STYLED),
        ("A \u043can.", "captions have letters that are not Latin"),  # the m is Cyrillic
    ],
)
def test_each_kind_of_fault(caption, kind):
    assert list(caption_faults(caption)) == [(kind, "")]


@pytest.mark.parametrize(
    ("caption", "kind", "characters"),
    [
        ("A man\0 in black.", CONTROL, "U+0000"),
        ("A man\x1b[31m in\x07 black.\x7f\x85", CONTROL, "U+001B, U+0007, U+007F"),  # the first three
        ("A man\u200b in black.", INVISIBLE, "U+200B"),
        ("\ufeffA man in black.", INVISIBLE, "U+FEFF"),
        ("A \u202eman in bl\u00adack.\u200f", INVISIBLE, "U+202E, U+00AD, U+200F"),
        ("A man\u2060 in a\u3164 coat.", INVISIBLE, "U+2060, U+3164"),
        ("A m\ufffdn in black.", LOST, "U+FFFD"),
        ("A man \ue000 in black.", LOST, "U+E000"),
    ],
)
def test_characters_that_nobody_sees_are_named(caption, kind, characters):
    assert (kind, characters) in list(caption_faults(caption))


@pytest.mark.parametrize(
    "caption",
    [
        "A man in black.",
        'The woman\'s T-shirt (white) reads "Nike"; she is 30-40 years old.',
        "None of her hair shows.",
        "Nan wears a red coat.",
        "unknown person in black",
        "A person(s) in a shirt(blue & white).",
        "From behind: a man.",
        "Class uniform.",
        "He has an import bag, and returns.",
        "A man; with a bag -- and a hat!!",
        "A man\nin black\twith a bag.\n",
        "Not sorry: I can see her.",
        "Unable to see her face. She has a dress with a floral print(red), black&white; and a hat.",
        "Un homme \u00e2g\u00e9, \u00df \u2013 50%\u2026",
        "A caf\u00e9 owner\u2019s \u201cgrey\u201d coat\u00a0and hat.",
        "\u00c2ge 30, \u00c3o, size 1/2 and \u00bd.",
    ],
)
def test_sound_captions_have_none(caption):
    assert not list(caption_faults(caption))


def records(**captions):
    return [
        Record(f"{split}{i}.jpg", i, (caption,), split, ((),), where=f"{split} {i}")
        for split, texts in captions.items()
        for i, caption in enumerate(texts)
    ]


def test_the_doctor_counts_the_tokens_that_the_tokenizer_does_not_know(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "."]))
    lines, findings = doctor.check_words(
        records(train=["A zig man.", "A zag ZIG."], test=["zap", "", "A man."]), load_tokenizer(str(tmp_path)), "mine"
    )
    assert lines == [
        'unknown to the tokenizer (mine): train 3 of 8 tokens (37.50%), "zig" 2, "zag" 1',
        'unknown to the tokenizer (mine): test 1 of 4 tokens (25.00%), "zap" 1',
    ]
    assert findings == [doctor.Finding(False, "1 caption has no word that the tokenizer knows: test 0", ("test 0",))]


def test_full_width_letters_are_unknown_words_and_what_is_printed_is_printable():
    lines, findings = doctor.check_words(records(train=["A man.", FULL_WIDTH], val=["\x9b31m"]), load_tokenizer(), "x")
    assert lines[0].startswith("unknown to the tokenizer (x): train 7 of 10 tokens (70.00%), ")
    assert findings == [doctor.Finding(False, "1 caption has no word that the tokenizer knows: train 1", ("train 1",))]
    assert all(line.isprintable() for line in lines)
