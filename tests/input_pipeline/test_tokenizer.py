import string

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.tokenizer import SHIPPED, load_tokenizer
from ivt_jax.common.errors import DataError

TINY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "coat", "##s", "rain", "##coat", ","]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "vocab.txt").write_text("\n".join(TINY) + "\n")
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_tokenizer(str(tiny_folder))


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer("")


def test_ids_by_hand(tiny):
    # a=5 red=6 coat=7 ##s=8 rain=9 ##coat=10 ,=11; a word of unknown letters is one [UNK]=1.
    ids = tiny.encode(["A red coat", "RAINCOATS, xyz", ""], 8)
    expected = [[2, 5, 6, 7, 3, 0, 0, 0], [2, 9, 10, 8, 11, 1, 3, 0], [2, 3, 0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.int32


def test_long_text_is_cut_and_keeps_its_separator(tiny):
    np.testing.assert_array_equal(tiny.encode(["a red coat, a red coat"], 5), [[2, 5, 6, 7, 3]])


def test_what_is_not_read_is_told(tiny):
    assert tiny.unread("A red coat", 5) == ([], "", False)
    assert tiny.unread("A red coat, a RED coat ", 6) == ([], "a RED coat", False)
    assert tiny.unread("xyz red raincoats", 5) == (["xyz"], "coats", False)  # it is cut within a word
    assert tiny.unread("xyz , zyx", 8) == (["xyz", "zyx"], "", True)  # a comma is no word
    assert tiny.unread("xyz red", 3) == (["xyz"], "red", True)
    assert tiny.unread("red" + " " * 100 + "coat", 5) == ([], "coat", False)  # so far `encode` does not look
    assert tiny.unread("", 5) == ([], "", True)


def test_whole_words_by_hand(tiny):
    ids = tiny.encode(["a raincoats red xyz coat"], 10)  # [CLS] a rain ##coat ##s red [UNK] coat [SEP] [PAD]
    np.testing.assert_array_equal(tiny.words(ids), [[0, 1, 2, 2, 2, 3, 0, 4, 0, 0]])
    masked = ids.copy()
    masked[0, 5] = tiny.mask_id
    np.testing.assert_array_equal(tiny.words(masked), [[0, 1, 2, 2, 2, 0, 0, 3, 0, 0]])


def test_special_ids_and_size(tiny):
    assert (tiny.pad_id, tiny.unk_id, tiny.begin_id, tiny.end_id, tiny.mask_id) == (0, 1, 2, 3, 4)
    assert tiny.vocab_size == 12


def test_special_ids_are_found_by_name(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "a", "[SEP]", "[CLS]", "[MASK]", "red", "[UNK]"]))
    tokenizer = load_tokenizer(str(tmp_path))
    np.testing.assert_array_equal(tokenizer.encode(["a red thing"], 6), [[3, 1, 5, 6, 2, 0]])


# Vocabularies as text, with characters that some readers take for line breaks, and the ids of "red", "coat" and ",".
LINES = {
    **{
        name: ("\n".join([*TINY[:6], blank, *TINY[6:]]) + "\n", [7, 8, 12])
        for name, blank in {
            "line separator": "\u2028", "paragraph separator": "\u2029", "next line": "\x85", "file separator": "\x1c",
            "record separator": "\x1e", "vertical tab": "\x0b", "form feed": "\x0c", "carriage return": "\r",
            "no-break space": "\xa0", "empty": "",
        }.items()
    },
    "two of them": ("\n".join([*TINY[:6], "\u2028", "\u2028", *TINY[6:]]) + "\n", [8, 9, 13]),
    "twice": ("\n".join([*TINY, "red"]) + "\n", [12, 7, 11]),
    "empty last line": ("\n".join(TINY) + "\n\n", [6, 7, 11]),
    "no line feed at the end": ("\n".join(TINY), [6, 7, 11]),
    "Windows": ("\r\n".join(TINY) + "\r\n", [6, 7, 11]),
    "byte order mark": ("\ufeff" + "\n".join(TINY) + "\n", [6, 7, 11]),
    "blank behind": ("\n".join(TINY).replace("red", "red ") + "\n", [6, 7, 11]),
    "separator behind": ("\n".join(TINY).replace("red", "red\u2028") + "\n", [6, 7, 11]),
    "carriage return within": ("\n".join(TINY).replace("rain", "ra\rin") + "\n", [6, 7, 11]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_vocab_txt_is_read_as_the_tokenizers_library_reads_it(name, tmp_path):
    """As in the tokenizers library, which transformers' BertTokenizer reads with."""
    from tokenizers.models import WordPiece
    from transformers import BertTokenizer

    text, expected = LINES[name]
    (tmp_path / "vocab.txt").write_bytes(text.encode())
    ours = load_tokenizer(str(tmp_path))
    (ids,) = ours.encode(["red coat,"], 5)
    assert ids.tolist() == [2, *expected, 3]
    theirs = WordPiece.read_file(str(tmp_path / "vocab.txt"))
    assert ours.vocab_size == max(theirs.values()) + 1 == len(text.removesuffix("\n").split("\n"))
    assert [theirs[token] for token in ("red", "coat", ",")] == expected
    sentence = "A red raincoat, coats xyz"
    encoded = BertTokenizer.from_pretrained(str(tmp_path))(sentence)["input_ids"]
    assert ours.encode([sentence], len(encoded))[0].tolist() == encoded


def test_a_vocabulary_of_another_size_is_not_made_to_fit_weights(tmp_path, tiny_folder):
    with pytest.raises(DataError, match=r"has 12 entries, config.model.vocab_size is 11; ") as error:
        load_tokenizer(str(tiny_folder), 11)
    first, second = str(error.value).split("; ")[1:]
    assert first == "set --config.text.tokenizer to the vocabulary of the model's weights"
    assert second == "to train from random parameters, set --config.model.vocab_size=12 instead"
    (tmp_path / "vocab.txt").write_text("\n".join(TINY) + "\n\n")
    with pytest.raises(DataError, match=r"has 13 entries.*; the last entry is an empty line: remove it$"):
        load_tokenizer(str(tmp_path), 12)


def test_a_token_with_a_line_break_moves_no_id_of_a_saved_vocabulary(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    entries = {token: id for id, token in enumerate([*TINY[:6], "\n", "a\r", "\u2028", *TINY[6:]])}
    backend = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.save(str(tmp_path / "tokenizer.json"))
    load_tokenizer(str(tmp_path)).save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert (tmp_path / "vocab.txt").read_bytes().split(b"\n")[5:10] == [b"a", b"", b"", "\u2028".encode(), b"red"]
    assert load_tokenizer(str(tmp_path)).encode(["red coat"], 4)[0].tolist() == [2, 9, 10, 3]


def test_json_and_vocabulary_give_the_same_ids(tiny, tiny_folder, tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(TINY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # What such files hold besides must not matter: their own special tokens, padding and truncation.
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_padding(length=20)
    backend.enable_truncation(2)
    backend.add_special_tokens(TINY[:5])
    backend.save(str(tmp_path / "tokenizer.json"))
    texts = ["A red raincoat", "coats, coats", "a [SEP] coat"]
    loaded = load_tokenizer(str(tmp_path))
    np.testing.assert_array_equal(loaded.encode(texts, 8), tiny.encode(texts, 8))
    assert loaded.digest == tiny.digest


def test_case_is_kept_where_the_settings_of_a_vocabulary_say_so(tiny_folder, tmp_path):
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join([*TINY, "Red"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(str(tmp_path)).encode(["Red red"], 4)[0].tolist() == [2, 12, 6, 3]
    theirs = BertTokenizer.from_pretrained(str(tiny_folder))
    theirs.save_pretrained(tmp_path)  # with tokenizer.json: the digest of the same rules
    assert load_tokenizer(str(tmp_path)).digest == load_tokenizer(str(tiny_folder)).digest


def test_a_special_token_in_a_text_is_text(tiny):
    np.testing.assert_array_equal(tiny.encode(["red [SEP] coat"], 8), [[2, 6, 1, 1, 1, 7, 3, 0]])  # [ sep ]


TEXTS = [
    "A woman in a red raincoat, with a black bag.",
    "",
    "[MASK] red [SEP] coat",
    "xyz CAF\u00c9 \u4e2d\tcoats  red",
]


@pytest.fixture(params=["tiny", "shipped", "cased", "with a gap"])
def saved(request, tmp_path):
    """A tokenizer, and the folder that it was saved in."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    (tmp_path / "source").mkdir()
    (tmp_path / "saved").mkdir()
    name = str(tmp_path / "source")
    if request.param == "shipped":
        name = ""
    elif request.param == "tiny":
        (tmp_path / "source/vocab.txt").write_text("\n".join(TINY) + "\n")
    else:
        gap = 3 if request.param == "with a gap" else 0
        entries = {token: id + gap * (id > 4) for id, token in enumerate([*TINY, "Red", "CAF\u00c9"])}
        backend = Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.add_tokens(["black bag"])
        backend.save(f"{name}/tokenizer.json")
    tokenizer = load_tokenizer(name)
    tokenizer.save(tmp_path / "saved")
    return tokenizer, tmp_path / "saved"


def test_a_saved_tokenizer_comes_back_with_its_digest(saved):
    tokenizer, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    again = load_tokenizer(str(folder))
    assert (again.digest, again.vocab_size) == (tokenizer.digest, tokenizer.vocab_size)
    np.testing.assert_array_equal(again.encode(TEXTS, 40), tokenizer.encode(TEXTS, 40))
    again.save(folder)
    assert load_tokenizer(str(folder)).digest == tokenizer.digest
    entries = (folder / "vocab.txt").read_text().split("\n")
    assert [entries[id] for id in tokenizer.encode(["red coat"], 4)[0]] == ["[CLS]", "red", "coat", "[SEP]"]


def test_other_programs_read_the_same_ids_from_a_saved_tokenizer(saved, monkeypatch):
    """Written for the loaders of transformers and of tokenizers, which add [CLS] and [SEP] themselves."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer, folder = saved
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "config.json").write_text('{"config": {}, "format": 1}')  # as in an export
    expected = tokenizer.encode(TEXTS, 40)
    theirs = AutoTokenizer.from_pretrained(folder)
    encoded = theirs(TEXTS, padding="max_length", max_length=40, truncation=True)
    np.testing.assert_array_equal(encoded["input_ids"], expected)
    np.testing.assert_array_equal(encoded["attention_mask"], expected != 0)
    for text, row in zip(TEXTS, expected, strict=True):
        assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids == row[row != 0].tolist()
    theirs.save_pretrained(folder)
    assert load_tokenizer(str(folder)).digest == tokenizer.digest


def test_the_digest_tells_vocabularies_apart(tiny, tiny_folder, shipped, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*TINY[:-1], "."]) + "\n")
    assert load_tokenizer(str(tiny_folder)).digest == tiny.digest
    assert len({tiny.digest, shipped.digest, load_tokenizer(str(tmp_path)).digest}) == 3


def test_the_shipped_vocabulary_is_in_order():
    entries = SHIPPED.read_text().splitlines()
    assert len(entries) == len(set(entries))
    assert entries[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [entry for entry in entries[5:] if len(entry) > 1 and not entry.startswith("##")]
    assert words == sorted(words)


def test_the_shipped_vocabulary_keeps_common_words_whole(shipped):
    text = "the woman has long black hair and carries a white handbag with stripes"
    assert shipped.words(shipped.encode([text], 32)).max() == len(text.split())
    assert (shipped.encode([text], 32) != 0).sum() == len(text.split()) + 2


@settings(max_examples=200, deadline=None)
@given(st.text(string.ascii_letters + string.digits + string.punctuation + " ", max_size=60))
def test_the_shipped_vocabulary_spells_any_ascii_text(text):
    tokenizer = load_tokenizer("")
    (ids,) = tokenizer.encode([text], 130)
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")


def test_what_can_hardly_fit_is_not_looked_at(tiny):
    """20 characters per token: of a length of 8, the first 160."""
    np.testing.assert_array_equal(tiny.encode([" " * 157 + "red coat"], 8), [[2, 6, 3, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(tiny.encode(["red " * 300_000], 8), [[2, 6, 6, 6, 6, 6, 6, 3]])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"], r"\[PAD\] at id 1"),
        (["[PAD]", "[UNK]", "[CLS]", "a"], r"has no \[SEP\], \[MASK\]"),
    ],
)
def test_unsuitable_vocabularies_are_refused(tmp_path, entries, message):
    (tmp_path / "vocab.txt").write_text("\n".join(entries))
    with pytest.raises(DataError, match=message):
        load_tokenizer(str(tmp_path))


def test_unreadable_tokenizers_are_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"a tokenizer folder holds tokenizer.json, .*; this one has none of them"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe")
    with pytest.raises(DataError, match=r"vocab.txt is not UTF-8"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer.json is not a tokenizer") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_name_that_the_hub_does_not_give_names_both_remedies(monkeypatch):
    import huggingface_hub

    def no_network(*args, **kwargs):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    with pytest.raises(
        DataError,
        match=r"no-such-name.*--config.text.tokenizer to a folder with its files \(.*\), or to \"\" for the shipped",
    ) as error:
        load_tokenizer("no-such-name")
    assert "\n" not in str(error.value)


def test_released_cleaning_removes_marks_and_has_no_end(tmp_path):
    plain, clean = load_tokenizer(""), load_tokenizer("", clean="released")
    text = 'A Black-and/white (striped) shirt, jeans; isn\'t #1~: "new"! *really*?'
    words = "a black and white striped shirt jeans isnt 1 new really"
    pieces = plain.encode([words], 50)[0].tolist()
    end = pieces.index(plain.end_id)
    assert clean.encode([text], 50)[0].tolist() == pieces[:end] + [0] * (50 - end)
    assert clean.end_id is None and clean.begin_id == plain.begin_id and clean.vocab_size == plain.vocab_size
    assert clean.digest != plain.digest
    assert clean.mask(clean.encode([text], 50)).sum() == end
    # At most 49 pieces after [CLS].
    assert clean.encode(["red " * 80], 50)[0].tolist() == [clean.begin_id] + [plain.encode(["red"], 3)[0, 1]] * 49


def test_released_cleaning_is_saved_with_the_tokenizer(tmp_path):
    clean = load_tokenizer("", clean="released")
    clean.save(tmp_path)
    again = load_tokenizer(str(tmp_path))
    text = "T-shirt/jacket, (red)."
    assert again.digest == clean.digest and again.end_id is None
    np.testing.assert_array_equal(again.encode([text], 12), clean.encode([text], 12))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert library == clean.encode([text], 12)[0, : len(library)].tolist()
    assert load_tokenizer(str(tmp_path), clean="released").digest == clean.digest


def test_unread_words_of_a_cleaned_text_are_those_of_the_text():
    unread = load_tokenizer("", clean="released").unread("a (red), \u043f\u0430\u043b\u044c-\u0442\u043e. Coat", 20)
    assert "".join(unread.words) == "\u043f\u0430\u043b\u044c\u0442\u043e" and not unread.all
