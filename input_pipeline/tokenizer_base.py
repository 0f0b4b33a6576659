"""What all tokenizers share: ids of fixed length, the parts of a text without ids, the digest, the saved files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tokenizers
from tokenizers import processors

from ivt_jax.common.errors import DataError
from ivt_jax.common.files import write_text

# Tokens of captions seldom have over eight characters. Text beyond this many per token is not read; it would not fit.
_CHARACTERS_PER_TOKEN = 20


class Unread(NamedTuple):
    """The parts of a text that the ids of `encode` do not contain.

    words: those that are not in the vocabulary; end: the text beyond `length`; all: whether no known word is left.
    """

    words: list[str]
    end: str
    all: bool


class Tokenizer:
    """Encodes texts as token ids of fixed length: a begin token if there is one, the text, an end token, padding.

    A special token in a text, such as "[SEP]", is encoded as ordinary text. Attributes: vocab_size; the ids pad_id,
    begin_id, end_id, unk_id and mask_id, all but the first None if texts have no such token; digest, the SHA-256 of the
    rules and the vocabulary, equal for equal ids. Subclasses define `mask` and where words begin.
    """

    expected: ClassVar[str]  # for errors: what the vocabulary should be
    layout: ClassVar[str]  # for manifests: the ids of a text, in words
    padding: ClassVar[str] = "true at tokens, false at padding"  # for manifests: the mask, in words
    attends_to_padding: ClassVar[bool] = False  # then texts need the length of the model's training
    blank_id: int | None = None  # the piece that is only the blank before a word, if any

    def __init__(self, backend: tokenizers.Tokenizer, name: str, special: Mapping[str, str]):
        """special: the token of "pad" and, where there is one, "begin", "end", "unk" and "mask"."""
        vocab = backend.get_vocab()
        missing = [token for token in dict.fromkeys(special.values()) if token not in vocab]
        if missing:
            raise DataError(f"tokenizer {name} has no {', '.join(missing)}; {self.expected}")
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self.backend = backend
        self.name = name
        self._special = special
        ids = {role: vocab[token] for role, token in special.items()}
        self.pad_id, self.begin_id, self.end_id = ids["pad"], ids.get("begin"), ids.get("end")
        self.unk_id, self.mask_id = ids.get("unk"), ids.get("mask")
        self._begin, self._end = ([id] if id is not None else [] for id in (self.begin_id, self.end_id))
        self.vocab_size = max(vocab.values()) + 1
        self.digest = hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode()).hexdigest()
        self._special_ids = np.array(sorted(set(ids.values())))
        self._tokens = np.full(self.vocab_size, "", object)
        for token, id in vocab.items():
            self._tokens[id] = token

    @property
    def ends_blank(self) -> bool:
        """Whether the last entry of the vocabulary is empty, as an empty last line of vocab.txt makes it."""
        return not self._tokens[-1]

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Returns (len(texts), length) int32 as `layout` says, padded with pad_id, cut to `length` with the end kept.

        Only the first 20 * length characters of a text are read. A lone surrogate, which JSON may contain, is read as
        U+FFFD.
        """
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        for row, encoding in zip(rows, self._encode(texts, length), strict=True):
            ids = encoding.ids[: self.room(length)]
            framed = [*self._begin, *ids, *self._end]
            row[: len(framed)] = framed
        return rows

    def room(self, length: int) -> int:
        """Returns how many of `length` tokens are left for the text, without begin and end token."""
        return length - len(self._begin) - len(self._end)

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """Returns which tokens the model attends to: ids (..., length) int -> same shape, bool, False at padding."""
        raise NotImplementedError

    def unread(self, text: str, length: int) -> Unread:
        """Returns the parts of a text that the ids of `encode` do not contain."""
        (encoding,), cut, room = self._encode([text], length), _cut(text, length), self.room(length)
        tokens = list(zip(encoding.ids, encoding.offsets, strict=True))
        end = tokens[room][1][0] if len(tokens) > room else len(cut)
        read = [(id, place) for id, place in tokens[:room] if id != self.blank_id]
        words = [(cut[start:stop], id != self.unk_id) for id, (start, stop) in read]
        unknown = [word for word, known in words if not known]
        some = any(known and any(map(str.isalnum, word)) for word, known in words)
        return Unread(unknown, text[end:].strip(), not some)

    def count_unknown(self, texts: Sequence[str], length: int) -> tuple[int, dict[int, Unread]]:
        """Returns the number of tokens of all texts, and index -> `unread` of each text with unknown words."""
        rows = [encoding.ids[: self.room(length)] for encoding in self._encode(texts, length)]
        unknown = {i: self.unread(texts[i], length) for i, ids in enumerate(rows) if self.unk_id in ids}
        return sum(map(len, rows)), unknown

    def words(self, ids: np.ndarray) -> np.ndarray:
        """Returns the number of each token's word, from 1 in each row; 0 for special and padding tokens.

        ids (..., length) int -> same shape, int32. A word is a token and the pieces that follow it.
        """
        outside = np.isin(ids, self._special_ids) | ~self.mask(ids)
        count = np.cumsum(self._starts(ids, outside) & ~outside, axis=-1)
        return np.where(outside, 0, count).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of one row of ids without special tokens."""
        row = np.asarray(ids)
        return self._join([int(id) for id in row[self.mask(row) & ~np.isin(row, self._special_ids)]])

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which give the same ids in other programs.

        `load_tokenizer(folder)`, `tokenizers.Tokenizer.from_file` and transformers' AutoTokenizer read them.
        """
        begin, end = ([self._special[role]] if role in self._special else [] for role in ("begin", "end"))
        numbered = [*zip(end, self._end, strict=True), *zip(begin, self._begin, strict=True)]
        single, pair = [*begin, "$A", *end], [*begin, "$A", *end, "$B:1", *(f"{token}:1" for token in end)]
        whole = tokenizers.Tokenizer.from_str(json.dumps(self._rules()))
        whole.post_processor = processors.TemplateProcessing(single, pair, numbered)
        whole.decoder = self._decoder()
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True, **self._settings(),
            "clean_up_tokenization_spaces": False,
        }  # fmt: skip
        write_text(folder / "tokenizer.json", whole.to_str(pretty=True) + "\n")
        write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")

    def _starts(self, ids: np.ndarray, outside: np.ndarray) -> np.ndarray:
        """Returns which tokens begin a word; outside: special and padding tokens. Both (..., length) bool."""
        raise NotImplementedError

    def _join(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=False).strip()

    def _decoder(self) -> Any:
        return self.backend.decoder

    def _settings(self) -> dict[str, str]:
        """Returns the special tokens as tokenizer_config.json names them."""
        names = {"pad": "pad_token", "unk": "unk_token", "begin": "bos_token", "end": "eos_token", "mask": "mask_token"}
        return {names[role]: token for role, token in self._special.items()}

    def _encode(self, texts: Sequence[str], length: int) -> list[tokenizers.Encoding]:
        return self.backend.encode_batch([_cut(text, length) for text in texts], add_special_tokens=False)

    def _rules(self) -> dict[str, Any]:
        """Returns the serialised tokenizer without what differs between its files but does not affect ids.

        That is the post-processor, the decoder, and special tokens that are in the vocabulary as well.
        """
        rules = json.loads(self.backend.to_str())
        vocab = self.backend.get_vocab(with_added_tokens=False)
        again = [token for token in rules["added_tokens"] if token["special"] and token["content"] in vocab]
        added = [token for token in rules["added_tokens"] if token not in again]
        return {**rules, "added_tokens": added, "post_processor": None, "decoder": None}

    def _identity(self) -> dict[str, Any]:
        """Returns what decides the ids; for byte pairs only the vocabulary, since BytePair and Gemma fix the rules."""
        rules, frame = self._rules(), [*self._begin, *self._end, self.pad_id]
        if rules["model"]["type"] != "BPE":
            return {**rules, "frame": frame}
        model = {key: rules["model"][key] for key in ("vocab", "merges")}
        return {"kind": type(self).__name__, "model": model, "added_tokens": rules["added_tokens"], "frame": frame}


def _cut(text: str, length: int) -> str:
    """Returns the part of a text that is read for `length` tokens, with U+FFFD for lone surrogates."""
    return text[: _CHARACTERS_PER_TOKEN * length].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
