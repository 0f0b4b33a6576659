"""The tokenizers of SigLIP and SigLIP 2, in which U+2581 begins a word.

SigLIP has a sentence-piece vocabulary of 32,000 and reads texts lower-cased and without punctuation; SigLIP 2 has
Gemma's, of 256,000, and reads them lower-cased. Both end a text with its end token and attend to the padding: a text
always has the length that the model was trained with, 64 (`config.text.length`), and its last token is read.
"""

import json
import string
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
    """Reads a sentence-piece model (spiece.model) of kind unigram.

    Raises DataError if it cannot be read or has an option that no vocabulary of SigLIP has.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as definition

    model = definition.ModelProto()  # type: ignore[attr-defined]  # protobuf makes the class when it is imported
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except DecodeError:
        model.Clear()
    if not model.pieces:
        raise DataError(f"{path} is not a sentence-piece model; fetch the file again")
    trainer, rules = model.trainer_spec, model.normalizer_spec
    unknown = [id for id, piece in enumerate(model.pieces) if piece.type == piece.UNKNOWN]
    marked = rules.add_dummy_prefix and rules.remove_extra_whitespaces and rules.escape_whitespaces
    if trainer.model_type != trainer.UNIGRAM or len(unknown) != 1 or not marked:
        raise DataError(
            f"{path} is not a unigram model that marks the blank before each word, as SigLIP's is; "
            "a tokenizer.json beside it would be read instead"
        )
    vocab = [(piece.piece, piece.score) for piece in model.pieces]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=unknown[0], byte_fallback=trainer.byte_fallback))
    charsmap = rules.precompiled_charsmap
    own = [normalizers.Precompiled(charsmap)] if charsmap else []
    backend.normalizer = normalizers.Sequence([*own, normalizers.Replace(Regex(" +"), " "), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always")
    return backend
