"""CLIP's tokenizer: lower-cased byte pairs, in which "</w>" ends a word.

The rules are those of transformers' CLIPTokenizer. OpenAI's own program first repairs broken Unicode (ftfy) and HTML
entities.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from input_pipeline.tokenizer_base import Tokenizer
from ivt_jax.common.errors import DataError

BEGIN, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
# Contractions, runs of letters, single digits, and runs of anything else but white space.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class BytePair(Tokenizer):
    """<|startoftext|> text <|endoftext|>, padded with the end token or another; the model reads the first end token.

    Every byte is in the vocabulary, so no word is unknown. Only vocabulary and merges of `backend` are used; the other
    rules are CLIP's.
    """

    expected = "CLIP's vocabulary is expected"
    layout = "<|startoftext|>, the pieces of the text cut to length - 2, <|endoftext|>, padded on the right"
    padding = "true up to and including the first <|endoftext|>, false at padding"

    def __init__(self, backend: tokenizers.Tokenizer, name: str, pad: str = END):
        blanks = normalizers.Replace(Regex(r"\s+"), " ")
        split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        super().__init__(backend, name, {"pad": pad, "begin": BEGIN, "end": END})
        vocab = backend.get_vocab()
        lacking = [byte for byte in pre_tokenizers.ByteLevel.alphabet() if not {byte, byte + SUFFIX} <= vocab.keys()]
        if lacking:
            raise DataError(f"tokenizer {name} lacks {len(lacking)} of the 256 bytes; {self.expected}")
        self._special_ids = np.array([self.begin_id, self.end_id])  # without the padding, which may be a word
        self._ends_word = np.array([token.endswith(SUFFIX) for token in self._tokens])

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """As in Tokenizer: True up to and including the first end token."""
        end = ids == self.end_id
        return np.cumsum(end, axis=-1) - end == 0

    def _starts(self, ids: np.ndarray, outside: np.ndarray) -> np.ndarray:
        ended = self._ends_word[ids] | outside
        return np.concatenate([np.ones_like(ended[..., :1]), ended[..., :-1]], axis=-1)

    def _join(self, ids: list[int]) -> str:
        return decoders.ByteLevel().decode([self._tokens[id] for id in ids]).replace(SUFFIX, " ").strip()

    def _decoder(self) -> Any:
        return decoders.Sequence([decoders.ByteLevel(), decoders.Replace(SUFFIX, " "), decoders.Strip(" ", 0, 1)])

    def _settings(self) -> dict[str, str]:
        return super()._settings() | {"unk_token": END}


def read_merges(folder: Path) -> tokenizers.Tokenizer:
    """Reads vocab.json and merges.txt. Raises DataError, naming the folder, if they cannot be read or do not match."""
    try:
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges: Any = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        model = models.BPE(vocab, merges, unk_token=END, end_of_word_suffix=SUFFIX, continuing_subword_prefix="")
    except Exception as error:  # the library raises a bare Exception
        reason = " ".join(str(error).split())
        raise DataError(f"{folder}: vocab.json and merges.txt are not a byte-pair vocabulary: {reason}") from None
    return tokenizers.Tokenizer(model)
