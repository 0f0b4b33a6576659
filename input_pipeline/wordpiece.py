"""BERT's tokenizer: WordPiece, in which "##" begins a piece that continues a word."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from input_pipeline.tokenizer_base import Tokenizer
from ivt_jax.common.errors import DataError
from ivt_jax.common.files import lines_of, write_text

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "begin": "[CLS]", "end": "[SEP]", "mask": "[MASK]"}


class WordPiece(Tokenizer):
    """[CLS] text [SEP], padded with [PAD], id 0, which is not attended to."""

    expected = "a BERT WordPiece vocabulary is expected, with one entry per line"
    layout = "[CLS], the pieces of the text cut to length - 2, [SEP], padded on the right"

    def __init__(self, backend: tokenizers.Tokenizer, name: str, special: Mapping[str, str] = SPECIAL):
        super().__init__(backend, name, special)
        if self.pad_id:
            raise DataError(f"tokenizer {name} has [PAD] at id {self.pad_id}; it must be the first entry, id 0")
        self._starts_word = np.array([not token.startswith("##") for token in self._tokens])

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """As in Tokenizer: True except at [PAD]."""
        return ids != self.pad_id

    def save(self, folder: Path) -> None:
        """As in Tokenizer, and writes vocab.txt.

        vocab.txt has an empty line for an id without a token and for a token with a line break.
        """
        super().save(folder)
        lines = ["" if "\n" in token or "\r" in token else token for token in self._tokens]
        write_text(folder / "vocab.txt", "\n".join(lines) + "\n")

    def _starts(self, ids: np.ndarray, outside: np.ndarray) -> np.ndarray:
        return self._starts_word[ids]

    def _join(self, ids: list[int]) -> str:
        return " ".join(self._tokens[id] for id in ids).replace(" ##", "")

    def _decoder(self) -> Any:
        return decoders.WordPiece()

    def _settings(self) -> dict[str, str]:
        names = ("pad", "unk", "cls", "sep", "mask")  # BERT's
        return {f"{name}_token": token for name, token in zip(names, SPECIAL.values(), strict=True)}

    def _identity(self) -> dict[str, Any]:
        return self._rules()  # the special tokens have fixed names


class CleanedWordPiece(WordPiece):
    """The texts of IVT's pre-training: [CLS] text, without [SEP]; the backend drops marks (`with_cleaning`)."""

    layout = "[CLS], the pieces of the text cut to length - 1, padded on the right"

    def __init__(self, backend: tokenizers.Tokenizer, name: str):
        super().__init__(backend, name, {role: token for role, token in SPECIAL.items() if role != "end"})

    def _identity(self) -> dict[str, Any]:
        return {**self._rules(), "frame": [self.begin_id, self.pad_id]}


def with_cleaning(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Returns a copy whose texts are cleaned first, as the IVT release does in pre-training.

    These marks are removed: , . ' ! ? " ( ) * # : ; ~ and "-" and "/" become blanks. Offsets stay those of the text.
    """
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    rules = [normalizers.Replace(Regex("[,.'!?\"()*#:;~]"), ""), normalizers.Replace(Regex("[-/]"), " ")]
    copy.normalizer = normalizers.Sequence([*rules, backend.normalizer])
    return copy


def is_cleaned(backend: tokenizers.Tokenizer) -> bool:
    """Returns whether a saved tokenizer is a CleanedWordPiece: its texts have no [SEP]."""
    parts = (json.loads(backend.to_str())["post_processor"] or {}).get("single", [])
    return [next(iter(part)) for part in parts] == ["SpecialToken", "Sequence"]


def read_vocabulary(path: Path, lower_case: bool = True) -> tokenizers.Tokenizer:
    """Reads a vocabulary as the tokenizers library does: an entry per line, trailing blanks ignored.

    Entries of blanks only are kept. Of equal entries, the last one has the id. Raises DataError if it cannot be read.
    """
    try:
        lines = lines_of(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; expected one vocabulary entry per line") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    vocab = {line.rstrip() or line: id for id, line in enumerate(lines)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=SPECIAL["unk"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend
