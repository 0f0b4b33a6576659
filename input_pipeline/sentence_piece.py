"""The tokenizers of SigLIP and SigLIP 2, in which U+2581 begins a word.

SigLIP has a sentence-piece vocabulary of 32,000 and reads texts lower-cased and without punctuation; SigLIP 2 has
Gemma's, of 256,000, and reads them lower-cased. Both end a text with its end token and attend to the padding: a text
always has the length that the model was trained with, 64 (`config.text.length`), and its last token is read.
"""

import json
import string
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from input_pipeline.tokenizer_base import Tokenizer
from ivt_jax.common.errors import DataError

BLANK = "\u2581"
# Python's white space; the last four are not Unicode's.
SPACES = Regex(r"[\s\x1c-\x1f]+")
PUNCTUATION = Regex("[" + "".join(f"\\x{ord(character):02x}" for character in string.punctuation) + "]")
UNIGRAM, BYTE_PAIR = 1, 2  # kinds of a sentence-piece model
UNKNOWN = 2  # kind of a piece


class SentencePiece(Tokenizer):
    """Text and end token, padded with a token that is attended to."""

    layout = "the pieces of the text cut to length - 1, the end token, padded on the right"
    padding = "true everywhere: the padding is attended to, and a text has all of `length`"
    attends_to_padding = True

    def __init__(self, backend: tokenizers.Tokenizer, name: str, special: dict[str, str]):
        super().__init__(backend, name, special)
        self.blank_id = backend.token_to_id(BLANK)
        self._starts_word = np.array([token.startswith(BLANK) for token in self._tokens])

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """As in Tokenizer: True everywhere."""
        return np.ones(np.shape(ids), bool)

    def _starts(self, ids: np.ndarray, outside: np.ndarray) -> np.ndarray:
        after = np.concatenate([np.ones_like(outside[..., :1]), outside[..., :-1]], axis=-1)
        return self._starts_word[ids] | after

    def _decoder(self) -> Any:
        blanks = decoders.Replace(BLANK, " ")
        return decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])

    def _join(self, ids: list[int]) -> str:
        return self._decoder().decode([self._tokens[id] for id in ids]).strip()


class Siglip(SentencePiece):
    """SigLIP's: padded with the end token unless its files say otherwise.

    Blanks before a text are removed, as in big_vision; transformers reads those that follow removed punctuation.
    """

    expected = "SigLIP's sentence-piece vocabulary is expected"

    def __init__(self, backend: tokenizers.Tokenizer, name: str, pad: str = "</s>", lower_case: bool = True):
        if not _lower_cases(backend):
            rules: list[Any] = []
            if lower_case:  # Python's lower() has another small sigma at the end of a word
                rules += [normalizers.Replace(Regex(r"(?<=\p{L})\u03a3(?!\p{L})"), "\u03c2"), normalizers.Lowercase()]
            rules += [normalizers.Replace(BLANK, " "), normalizers.Replace(PUNCTUATION, "")]
            rules += [normalizers.Replace(SPACES, " "), normalizers.Strip()]
            own = [backend.normalizer] if backend.normalizer else []
            backend.normalizer = normalizers.Sequence([*rules, *own])
        super().__init__(backend, name, {"pad": pad, "end": "</s>", "unk": "<unk>"})

    def _identity(self) -> dict[str, Any]:
        """As in Tokenizer, with scores in float32: the library does not read a float64 as it wrote it, to the bit."""
        identity = super()._identity()
        vocab = [[piece, float(np.float32(score))] for piece, score in identity["model"]["vocab"]]
        return {**identity, "model": {**identity["model"], "vocab": vocab}}


class Gemma(SentencePiece):
    """SigLIP 2's, which is Gemma's with lower-cased texts.

    Of `backend`, vocabulary, merges and added tokens count; the other rules are SigLIP 2's.
    """

    expected = "Gemma's vocabulary is expected, as SigLIP 2 has it"

    def __init__(self, backend: tokenizers.Tokenizer, name: str, pad: str = "<pad>"):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", BLANK)])
        backend.pre_tokenizer = None
        super().__init__(backend, name, {"pad": pad, "end": "<eos>", "unk": "<unk>", "mask": "<mask>"})


def _lower_cases(backend: tokenizers.Tokenizer) -> bool:
    """Whether a step of the normaliser makes lower case, as those do that `save` wrote."""
    found = json.loads(backend.to_str())["normalizer"] or {}
    return any(step["type"] == "Lowercase" for step in found.get("normalizers", [found]) if step)


def read_model(path: Path) -> tokenizers.Tokenizer:
    """Reads a sentence-piece model (spiece.model) of kind unigram; the package sentencepiece is not needed.

    Raises DataError if it cannot be read or has an option that no vocabulary of SigLIP has.
    """
    try:
        pieces, trainer, normaliser = _parts(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, IndexError, struct.error):
        raise DataError(f"{path} is not a sentence-piece model; fetch the file again") from None
    kind = trainer.get(3, UNIGRAM)
    unknown = [id for id, piece in enumerate(pieces) if piece[2] == UNKNOWN]
    if kind != UNIGRAM or len(unknown) != 1 or not all(normaliser.get(option, 1) for option in (3, 4, 5)):
        raise DataError(
            f"{path} is not a unigram model that marks the blank before each word, as SigLIP's is; "
            "a tokenizer.json beside it would be read instead"
        )
    vocab = [(text, score) for text, score, _ in pieces]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=unknown[0], byte_fallback=bool(trainer.get(35, 0))))
    charsmap = normaliser.get(2, b"")
    own = [normalizers.Precompiled(charsmap)] if charsmap else []
    backend.normalizer = normalizers.Sequence([*own, normalizers.Replace(Regex(" +"), " "), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always")
    return backend


def _parts(content: bytes) -> tuple[list[tuple[str, float, int]], dict[int, Any], dict[int, Any]]:
    """Returns the pieces (text, score, kind) and the options of trainer and normaliser, by their field numbers.

    Field numbers: sentencepiece_model.proto of google/sentencepiece.
    """
    pieces: list[tuple[str, float, int]] = []
    options: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for number, value in _fields(content):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, 1)))
        elif number in options:
            options[number] = dict(_fields(value))
    if not pieces:
        raise ValueError("no pieces")
    return pieces, options[2], options[3]


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yields number and value of each field of a protocol-buffer message: int, or bytes. Raises ValueError."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = content[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while place < len(content):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError("unknown wire type")
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        if place + size > len(content):
            raise ValueError("cut off")
        yield number, content[place : place + size]
        place += size
