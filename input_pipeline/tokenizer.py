"""Encodes captions as token ids: WordPiece with the shipped vocabulary, one in a folder, or one from the hub."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from ivt_jax.common.errors import DataError
from ivt_jax.common.files import lines_of, write_text

SHIPPED = Path(__file__).with_name("vocab.txt")

# Tokens of captions seldom have over eight characters. Text beyond this many per token is not read; it would not fit.
_CHARACTERS_PER_TOKEN = 20


class Unread(NamedTuple):
    """The parts of a text that `encode` has no ids for.

    words: those that are not in the vocabulary; end: the text beyond `length`; all: whether no known word is left.
    """

    words: list[str]
    end: str
    all: bool


class Tokenizer:
    """Encodes texts as token ids of fixed length: [CLS] text [SEP], padded with 0.

    A special token in a text, such as "[SEP]", is encoded as ordinary text. Attributes: vocab_size; the ids pad_id (0),
    unk_id, cls_id, sep_id, mask_id; digest, the SHA-256 of the rules and the vocabulary, equal for equal ids.
    """

    pad_id = 0

    def __init__(self, backend: tokenizers.Tokenizer, name: str):
        vocab = backend.get_vocab()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        missing = [token for token in special if token not in vocab]
        if missing:
            raise DataError(
                f"tokenizer {name} has no {', '.join(missing)}; a BERT WordPiece vocabulary is expected, "
                "with one entry per line"
            )
        if vocab["[PAD]"] != self.pad_id:
            raise DataError(f"tokenizer {name} has [PAD] at id {vocab['[PAD]']}; it must be the first entry, id 0")
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self._backend = backend
        self.unk_id, self.cls_id, self.sep_id, self.mask_id = (vocab[token] for token in special[1:])
        self.vocab_size = max(vocab.values()) + 1
        self.digest = hashlib.sha256(json.dumps(self._rules(), sort_keys=True).encode()).hexdigest()
        self._special = np.array([vocab[token] for token in special])
        self._tokens = np.full(self.vocab_size, "", object)
        for token, id in vocab.items():
            self._tokens[id] = token
        self._starts_word = np.array([not token.startswith("##") for token in self._tokens])

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Returns (len(texts), length) int32: [CLS] tokens [SEP], padded with 0, cut to `length` with [SEP] kept.

        Only the first 20 * length characters of a text are read. A lone surrogate, which JSON may contain, is read as
        U+FFFD.
        """
        cut = [_without_halves(text[: _CHARACTERS_PER_TOKEN * length]) for text in texts]
        rows = np.zeros((len(cut), length), np.int32)
        for row, encoding in zip(rows, self._backend.encode_batch(cut, add_special_tokens=False), strict=True):
            ids = encoding.ids[: length - 2]
            row[: len(ids) + 2] = [self.cls_id, *ids, self.sep_id]
        return rows

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """Returns which tokens the model attends to: ids (..., length) int -> same shape, bool, False at padding."""
        return ids != self.pad_id

    def unread(self, text: str, length: int) -> Unread:
        """Returns the parts of a text that the ids of `encode` do not contain."""
        cut = _without_halves(text[: _CHARACTERS_PER_TOKEN * length])
        encoding = self._backend.encode(cut, add_special_tokens=False)
        tokens = list(zip(encoding.ids, encoding.offsets, strict=True))
        end = tokens[length - 2][1][0] if len(tokens) > length - 2 else len(cut)
        words = [(cut[start:stop], id != self.unk_id) for id, (start, stop) in tokens[: length - 2]]
        unknown = [word for word, known in words if not known]
        some = any(known and any(map(str.isalnum, word)) for word, known in words)
        return Unread(unknown, text[end:].strip(), not some)

    def count_unknown(self, texts: Sequence[str], length: int) -> tuple[int, dict[int, Unread]]:
        """Returns the number of tokens of all texts, and index -> `unread` of each text with unknown words."""
        cut = [_without_halves(text[: _CHARACTERS_PER_TOKEN * length]) for text in texts]
        rows = [encoding.ids[: length - 2] for encoding in self._backend.encode_batch(cut, add_special_tokens=False)]
        unknown = {i: self.unread(texts[i], length) for i, ids in enumerate(rows) if self.unk_id in ids}
        return sum(map(len, rows)), unknown

    def words(self, ids: np.ndarray) -> np.ndarray:
        """Returns the number of each token's word, from 1 in each row; 0 for special and padding tokens.

        ids (..., length) int -> same shape, int32. A word is a token and the "##" pieces that follow it.
        """
        special = np.isin(ids, self._special)
        count = np.cumsum(self._starts_word[ids] & ~special, axis=-1)
        return np.where(special, 0, count).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of one row of ids without special tokens; pieces are joined, punctuation is separate."""
        return " ".join(self._tokens[id] for id in ids if id not in self._special).replace(" ##", "")

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and vocab.txt, which give the same ids in other programs.

        `load_tokenizer(folder)`, `tokenizers.Tokenizer.from_file` and transformers' AutoTokenizer read them. vocab.txt
        has an empty line for an id without a token and for a token with a line break.
        """
        cls, sep = "[CLS]", "[SEP]"
        numbered = [(cls, self.cls_id), (sep, self.sep_id)]
        frame = processors.TemplateProcessing(f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", numbered)
        whole = tokenizers.Tokenizer.from_str(json.dumps(self._rules()))
        whole.post_processor, whole.decoder = frame, decoders.WordPiece()
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True, "pad_token": "[PAD]",
            "unk_token": "[UNK]", "cls_token": cls, "sep_token": sep, "mask_token": "[MASK]",
            "clean_up_tokenization_spaces": False,
        }  # fmt: skip
        write_text(folder / "tokenizer.json", whole.to_str(pretty=True) + "\n")
        write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
        lines = ["" if "\n" in token or "\r" in token else token for token in self._tokens]
        write_text(folder / "vocab.txt", "\n".join(lines) + "\n")

    def _rules(self) -> dict[str, Any]:
        """Returns the serialised tokenizer without settings that do not affect ids; its files differ in those settings.

        Padding and truncation are off. Only some files list the special tokens of the vocabulary again.
        """
        rules = json.loads(self._backend.to_str())
        vocab = rules["model"]["vocab"]
        again = [token for token in rules["added_tokens"] if token["special"] and token["content"] in vocab]
        added = [token for token in rules["added_tokens"] if token not in again]
        return {**rules, "added_tokens": added, "post_processor": None, "decoder": None}


def load_tokenizer(name: str = "", vocab_size: int = 0) -> Tokenizer:
    """Loads the tokenizer `name`.

    name: "" for the shipped vocabulary; a folder with tokenizer.json or vocab.txt (BERT's, lower case); or a name on
    the hub, read through transformers. vocab_size: the model's, or 0 to accept any. Raises DataError, in one line, also
    if the sizes differ: another size usually means another vocabulary, so change the model's only without trained
    weights.
    """
    tokenizer = Tokenizer(_backend(name), name or "(shipped)")
    if vocab_size and tokenizer.vocab_size != vocab_size:
        blank = "" if tokenizer._tokens[-1] else "; the last entry is an empty line: remove it"
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} entries, config.model.vocab_size is {vocab_size}; "
            "set --config.text.tokenizer to the vocabulary of the model's weights; to train from random "
            f"parameters, set --config.model.vocab_size={tokenizer.vocab_size} instead{blank}"
        )
    return tokenizer


def _backend(name: str) -> tokenizers.Tokenizer:
    if not name:
        return _wordpiece(SHIPPED)
    folder = Path(name)
    if (folder / "tokenizer.json").is_file():
        return _from_json(folder / "tokenizer.json")
    if (folder / "vocab.txt").is_file():
        return _wordpiece(folder / "vocab.txt")
    if folder.is_dir():
        raise DataError(f"{folder}: a tokenizer folder holds vocab.txt or tokenizer.json; this one has neither")
    return _from_hub(name)


def _without_halves(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _wordpiece(path: Path) -> tokenizers.Tokenizer:
    """Reads a vocabulary as the tokenizers library does: an entry per line, trailing blanks ignored.

    Entries of blanks only are kept. Of equal entries, the last one has the id.
    """
    try:
        lines = lines_of(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; expected one vocabulary entry per line") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    vocab = {line.rstrip() or line: id for id, line in enumerate(lines)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _from_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{path} is not a tokenizer of the tokenizers library: {error}") from None


def _from_hub(name: str) -> tokenizers.Tokenizer:
    """Loads from the hub's cache, else over the network, after one short request: the client retries for a minute."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that PyTorch is missing
    import huggingface_hub
    import transformers  # takes a second to import

    load = transformers.AutoTokenizer.from_pretrained
    try:
        try:
            tokenizer = load(name, local_files_only=True)
        except OSError:
            huggingface_hub.HfApi().model_info(name, timeout=10)
            tokenizer = load(name)
    except Exception as error:  # the hub's client raises many kinds
        raise DataError(
            f'tokenizer "{name}" is not a folder and cannot be loaded from the hub ({type(error).__name__}). Set '
            '--config.text.tokenizer to a folder with its vocab.txt, or to "" for the shipped vocabulary'
        ) from None
    return tokenizer.backend_tokenizer
