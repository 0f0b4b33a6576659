"""The tokenizers of CLIP, SigLIP and SigLIP 2 on small vocabularies in their published formats.

Ids are compared with transformers' own classes, or with numbers that they computed where they need another package.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.common.errors import DataError

SIGLIP = Path(__file__).parent.parent / "data/siglip"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
CLIP_MERGES = [
    ("r", "e"), ("re", "d</w>"), ("c", "o"), ("a", "t</w>"), ("co", "at</w>"), ("a", "n"), ("an", "d</w>"),
    ("\u00c3", "\u00a9</w>"), ("'", "s</w>"),
]  # fmt: skip
CLIP = [*BYTES, *(byte + "</w>" for byte in BYTES), *map("".join, CLIP_MERGES), "<|startoftext|>", "<|endoftext|>"]
GEMMA_MERGES = [("r", "e"), ("re", "d"), ("\u2581", "red"), ("c", "o"), ("a", "t"), ("co", "at"), ("\u2581", "coat")]
GEMMA = [
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)),
    *"abcdefghijklmnoprstuvwxyz", "\u2581", *",.!-AWR\u00e9\n", *map("".join, GEMMA_MERGES),
]  # fmt: skip

TEXTS = [
    "a woman in a red coat", "A WOMAN, in a Red-Coat!!", "na\u00efve caf\u00e9 cafe\u0301 \u00c9", "a \U0001f600 coat",
    "tabs\tand\nlines\x1cx\x85y\u00a0z", "   blanks   between   ", "[SEP] coat", "it's don't we'll I'd", "1234 a4 2nd",
    "\u6f22\u5b57", "", "coat " * 100, "a \ud83d b", "\u0130I \u039f\u0394\u039f\u03a3",
]  # fmt: skip


def ids_of(tokens):
    return {token: id for id, token in enumerate(tokens)}


def whole(text):
    """The text as `encode` reads it, with U+FFFD for a lone surrogate."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def write_clip(folder, settings=None):
    (folder / "vocab.json").write_text(json.dumps(ids_of(CLIP)))
    lines = [" ".join(merge) for merge in CLIP_MERGES]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_gemma(folder):
    """tokenizer.json as Gemma's is published: no lower case, for which SigLIP 2's files have no option."""
    from transformers import GemmaTokenizer

    GemmaTokenizer(vocab=ids_of(GEMMA), merges=GEMMA_MERGES).save_pretrained(folder)
    return folder


def write_siglip(folder):
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copyfile(SIGLIP / name, folder / name)
    return folder


WRITERS = {"clip": write_clip, "siglip": write_siglip, "siglip2": write_gemma}


@pytest.fixture(scope="module", params=WRITERS)
def any_tokenizer(request, tmp_path_factory):
    return load_tokenizer(str(WRITERS[request.param](tmp_path_factory.mktemp(request.param))))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_tokenizer(str(write_clip(tmp_path_factory.mktemp("clip"))))


@pytest.fixture(scope="module")
def siglip():
    return load_tokenizer(str(SIGLIP))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return load_tokenizer(str(write_gemma(tmp_path_factory.mktemp("gemma"))))


def test_ids_of_clip_by_hand(clip):
    begin, end = CLIP.index("<|startoftext|>"), CLIP.index("<|endoftext|>")
    a, red, coat, comma = (CLIP.index(f"{token}</w>") for token in ("a", "red", "coat", ","))
    ids = clip.encode(["A  Red coat,"], 8)
    np.testing.assert_array_equal(ids, [[begin, a, red, coat, comma, end, end, end]])
    np.testing.assert_array_equal(clip.mask(ids), [[True] * 6 + [False] * 2])
    np.testing.assert_array_equal(clip.encode(["red coat red"], 4), [[begin, red, coat, end]])
    assert (clip.begin_id, clip.end_id, clip.pad_id) == (begin, end, end)
    assert (clip.unk_id, clip.mask_id, clip.vocab_size) == (None, None, len(CLIP))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_clip_are_those_of_transformers(clip, text):
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer(vocab=ids_of(CLIP), merges=CLIP_MERGES)
    expected = theirs(whole(text), padding="max_length", max_length=77, truncation=True)
    (ids,) = clip.encode([text], 77)
    assert ids.tolist() == expected["input_ids"]
    assert clip.mask(ids).astype(int).tolist() == expected["attention_mask"]


def test_the_padding_of_clip_is_that_of_its_files(tmp_path, clip):
    """Padded with id 0, which is a word, as some files have it: neither a word of the text nor attended to."""
    zero = load_tokenizer(str(write_clip(tmp_path, {"pad_token": {"content": BYTES[0]}})))
    ids = zero.encode([f"red {BYTES[0]}"], 6)
    np.testing.assert_array_equal(ids[0, 4:], [0, 0])
    np.testing.assert_array_equal(zero.mask(ids), [[True] * 4 + [False] * 2])
    np.testing.assert_array_equal(zero.words(ids), [[0, 1, 2, 0, 0, 0]])
    assert zero.digest != clip.digest


def test_words_of_clip_end_where_their_pieces_say(clip):
    ids = clip.encode(["a redcoat, red's"], 12)  # begin a | r e d coat | , | red | 's | end
    tokens = [CLIP[id] for id in ids[0, 1:7]]
    assert tokens == ["a</w>", "re", "d", "coat</w>", ",</w>", "red</w>"]
    np.testing.assert_array_equal(clip.words(ids), [[0, 1, 2, 2, 2, 3, 4, 5, 0, 0, 0, 0]])
    assert clip.decode(ids[0]) == "a redcoat , red 's"


def test_a_special_token_of_clip_in_a_text_is_text(clip):
    (ids,) = clip.encode(["red <|endoftext|> coat"], 40)
    assert ids.tolist().index(clip.end_id) == clip.mask(ids).sum() - 1
    assert CLIP[ids[clip.mask(ids)][-2]] == "coat</w>"


@pytest.mark.parametrize(
    "case", json.loads((SIGLIP / "ids.json").read_text()), ids=lambda case: ascii(case["text"][:20])
)
def test_ids_of_siglip_are_those_of_transformers(siglip, case):
    """Computed by tests/reference/siglip_tokenizer.py with transformers' SiglipTokenizer."""
    (ids,) = siglip.encode([case["text"]], 64)
    assert ids.tolist() == case["ids"] + [1] * (64 - len(case["ids"]))


def test_siglip_reads_no_blanks_before_a_text(siglip):
    """As big_vision; transformers' class has a piece for the blank that follows removed punctuation."""
    plain = siglip.encode(["coat"], 8)
    for text in ("  coat", "... coat", "\u200b coat"):
        np.testing.assert_array_equal(siglip.encode([text], 8), plain)


def test_siglip_attends_to_its_padding(siglip, gemma):
    for tokenizer, pad in ((siglip, 1), (gemma, 0)):
        ids = tokenizer.encode(["red"], 64)
        assert tokenizer.mask(ids).all() and ids[0, -1] == pad == tokenizer.pad_id
        assert tokenizer.end_id == 1 and tokenizer.begin_id is None


def test_words_of_siglip_begin_with_its_blank(siglip):
    ids = siglip.encode(["a coatier bag"], 16)
    tokens = [siglip._tokens[id] for id in ids[0]]
    numbers = [sum(token.startswith("\u2581") for token in tokens[: i + 1]) for i in range(16)]
    end = tokens.index("</s>")
    np.testing.assert_array_equal(siglip.words(ids)[0], numbers[:end] + [0] * (16 - end))
    assert siglip.words(ids).max() == 3 and siglip.decode(ids[0]) == "a coatier bag"


@pytest.mark.parametrize("text", [text for text in TEXTS if text != "[SEP] coat"])
def test_ids_of_siglip_2_are_those_of_transformers(gemma, text):
    from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

    theirs = Siglip2Tokenizer(vocab=ids_of(GEMMA), merges=GEMMA_MERGES).backend_tokenizer
    expected = [*theirs.encode(whole(text), add_special_tokens=False).ids[:63], 1]
    assert gemma.encode([text], 64)[0].tolist() == expected + [0] * (64 - len(expected))


def test_words_of_siglip_2(gemma):
    ids = gemma.encode(["a red coat, \U0001f600"], 16)  # a | _red | _coat , | _ and four bytes | <eos>
    np.testing.assert_array_equal(gemma.words(ids), [[1, 2, 3, 3, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0]])
    assert gemma.decode(ids[0]) == "a red coat, \U0001f600" and gemma.mask_id == 4
    (ids,) = gemma.encode(["red <eos> coat"], 24)
    assert ids.tolist().index(1) == 8  # red | _ | < | e | o | s | > | _coat: the text's own <eos> is text


def test_what_is_not_read(clip, siglip, gemma):
    assert clip.unread("red coat and", 4) == ([], "and", False)
    assert clip.unread("\U0001f600 ,", 9) == ([], "", True)
    assert siglip.unread("a \U0001f600 bag", 64) == (["\U0001f600"], "", False)
    assert siglip.unread("\u6f22 ,", 64) == (["\u6f22"], "", True)
    assert siglip.count_unknown(["a bag", "a \u6f22 bag"], 64)[1].keys() == {1}
    assert gemma.unread("a red coat red", 4) == ([], "red", False)
    assert [tokenizer.room(64) for tokenizer in (clip, siglip, gemma)] == [62, 63, 63]
    assert clip.count_unknown(["a \U0001f600"], 77)[1] == {}


def test_a_saved_tokenizer_comes_back_and_others_read_it(any_tokenizer, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    any_tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {}, "format": 1}')  # as in an export
    again = load_tokenizer(str(tmp_path))
    assert (type(again), again.digest, again.vocab_size) == (
        type(any_tokenizer), any_tokenizer.digest, any_tokenizer.vocab_size
    )  # fmt: skip
    expected = any_tokenizer.encode(TEXTS, 64)
    np.testing.assert_array_equal(again.encode(TEXTS, 64), expected)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    encoded = theirs([*map(whole, TEXTS)], padding="max_length", max_length=64, truncation=True)
    np.testing.assert_array_equal(encoded["input_ids"], expected)
    whole_text = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXTS[0]).ids
    assert whole_text == expected[0, : len(whole_text)].tolist() and whole_text[-1] == any_tokenizer.end_id
    theirs.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).digest == any_tokenizer.digest


def test_the_files_of_transformers_classes_have_the_same_digest(clip, gemma, tmp_path):
    from transformers import CLIPTokenizer
    from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

    CLIPTokenizer(vocab=ids_of(CLIP), merges=CLIP_MERGES).save_pretrained(tmp_path / "clip")
    Siglip2Tokenizer(vocab=ids_of(GEMMA), merges=GEMMA_MERGES).save_pretrained(tmp_path / "gemma")
    assert load_tokenizer(str(tmp_path / "clip")).digest == clip.digest
    assert load_tokenizer(str(tmp_path / "gemma")).digest == gemma.digest


def test_a_vocabulary_of_another_size_is_refused(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path)
    size = any_tokenizer.vocab_size
    assert load_tokenizer(str(tmp_path), size).vocab_size == size
    with pytest.raises(DataError, match=rf"has {size} entries, config.model.vocab_size is 49408; ") as error:
        load_tokenizer(str(tmp_path), 49408)
    assert "\n" not in str(error.value)


def save_bpe(folder, tokens, **options):
    Tokenizer(models.BPE(ids_of(tokens), [], **options)).save(str(folder / "tokenizer.json"))


def save_unigram(folder):
    Tokenizer(models.Unigram([("<unk>", 0.0)], 0, False)).save(str(folder / "tokenizer.json"))


def write_merges(folder, text):
    (write_clip(folder) / "merges.txt").write_text(text)


def write_settings(folder, text):
    (write_clip(folder) / "tokenizer_config.json").write_text(text)


def write_model(folder, content):
    (folder / "spiece.model").write_bytes(content)


BYTE_PAIR_KIND = b"\x12\x02\x18\x02"  # trainer (field 2) of two bytes: kind (field 3) 2
UNFIT = [
    (lambda f: save_bpe(f, CLIP[:-1], end_of_word_suffix="</w>"), r"has no <\|endoftext\|>"),
    (lambda f: save_bpe(f, CLIP[5:], end_of_word_suffix="</w>"), r"lacks 5 of the 256 bytes"),
    (lambda f: save_bpe(f, GEMMA[2:], byte_fallback=True), r"has no <pad>, <eos>; Gemma's vocabulary is expected"),
    (save_unigram, r"has no </s>; SigLIP's sentence-piece vocabulary is expected"),
    (lambda f: write_model(f, b"\x0a\xff\xff"), r"spiece.model is not a sentence-piece model"),
    (lambda f: write_model(f, b""), r"spiece.model is not a sentence-piece model"),
    (lambda f: write_model(f, (SIGLIP / "spiece.model").read_bytes() + BYTE_PAIR_KIND), r"is not a unigram model"),
    (lambda f: write_merges(f, "a b c\n"), r"are not a byte-pair vocabulary"),
    (lambda f: write_settings(f, "{"), r"tokenizer_config.json cannot be read"),
    (lambda f: write_clip(f, {"pad_token": "[PAD]"}), r"has no \[PAD\]; CLIP's vocabulary is expected"),
]


@pytest.mark.parametrize(("write", "message"), UNFIT, ids=[message for _, message in UNFIT])
def test_tokenizers_that_do_not_fit_are_one_line(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_cut_sentence_piece_model_is_refused(siglip, tmp_path):
    """A cut between two fields leaves a shorter vocabulary, whose size load_tokenizer compares."""
    content = (SIGLIP / "spiece.model").read_bytes()
    pieces = content.index(b"\x12\x6a")  # the trainer's options follow: field 2, 106 bytes
    for cut in range(0, pieces, 41):
        (tmp_path / "spiece.model").write_bytes(content[:cut])
        with pytest.raises(DataError):
            load_tokenizer(str(tmp_path), siglip.vocab_size)
