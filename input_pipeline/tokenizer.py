"""Loads the tokenizer of captions: the shipped vocabulary, one in a folder, or one from the hub.

Its files decide the kind: WordPiece (BERT's and ours), CLIP's byte pairs, or the sentence pieces of SigLIP.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import tokenizers

from input_pipeline.byte_pair import END, SUFFIX, BytePair, read_merges
from input_pipeline.sentence_piece import Gemma, Siglip, read_model
from input_pipeline.tokenizer_base import Tokenizer, Unread
from input_pipeline.wordpiece import CleanedWordPiece, WordPiece, is_cleaned, read_vocabulary, with_cleaning
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import IS_POINTER, is_pointer
from ivt_jax.common.hub import Repository, fetch, look_up

__all__ = [
    "CLEAN", "SHIPPED", "NotLoadedError", "Tokenizer", "Unread", "cleaned", "fetch_tokenizer", "is_tokenizer",
    "load_tokenizer", "refuse_other_size",
]  # fmt: skip

SHIPPED = Path(__file__).with_name("vocab.txt")
CLEAN = ("", "released")  # text rules: the tokenizer's own; or those of IVT's pre-training
VOCABULARIES = ("tokenizer.json", "vocab.txt", "spiece.model", "vocab.json", "merges.txt")
# The files that are read, in the order of fetching: if a download stops in between, those that are there give the same
# tokenizer as all of them, or an error.
FILES = ("tokenizer_config.json", "spiece.model", "tokenizer.json", "vocab.txt", "merges.txt", "vocab.json")


class NotLoadedError(DataError):
    """A tokenizer that the hub does not give. reason: the message without the remedy, a flag that not all have."""

    def __init__(self, reason: str):
        super().__init__(
            f"{reason}. Set --config.text.tokenizer to a folder with its files ({', '.join(VOCABULARIES[:-2])}, or "
            'vocab.json and merges.txt), or to "" for the shipped vocabulary'
        )
        self.reason = reason


def load_tokenizer(name: str = "", vocab_size: int = 0, clean: str = "") -> Tokenizer:
    """Loads the tokenizer `name`.

    name: "" for the shipped vocabulary; a folder with tokenizer.json, vocab.txt (BERT's), vocab.json and merges.txt
    (CLIP's) or spiece.model (SigLIP's); or its name on the hub, NAME or NAME@REVISION. vocab_size: the model's, or 0
    to accept any. clean: one of CLEAN. Raises DataError, in one line, also if the sizes differ: another size usually
    means another vocabulary, so change the model's only without trained weights.
    """
    if not name:
        tokenizer: Tokenizer = WordPiece(read_vocabulary(SHIPPED), "(shipped)")
    elif Path(name).is_dir():
        tokenizer = _from_folder(Path(name), name)
    else:
        tokenizer = _from_hub(name)
    if vocab_size:
        refuse_other_size(tokenizer, vocab_size)
    return cleaned(tokenizer) if clean else tokenizer


def cleaned(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer with the text rules of IVT's pre-training. Raises UserError if it is not a WordPiece."""
    if isinstance(tokenizer, CleanedWordPiece):
        return tokenizer
    if not isinstance(tokenizer, WordPiece):
        raise UserError('text.clean released is for WordPiece, such as "bert-base-uncased"; set --config.text.clean=""')
    return CleanedWordPiece(with_cleaning(tokenizer.backend), tokenizer.name)


def refuse_other_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises DataError if the size of the model's vocabulary is not the tokenizer's."""
    if tokenizer.vocab_size != vocab_size:
        blank = "; the last entry is an empty line: remove it" if tokenizer.ends_blank else ""
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} entries, config.model.vocab_size is {vocab_size}; "
            "set --config.text.tokenizer to the vocabulary of the model's weights; to train from random "
            f"parameters, set --config.model.vocab_size={tokenizer.vocab_size} instead{blank}"
        )


def _from_folder(folder: Path, name: str) -> Tokenizer:
    """Returns the tokenizer of a folder, which errors call `name`. Raises DataError."""
    for path in (folder / file for file in FILES):
        if path.is_file() and is_pointer(path):
            raise DataError(f"{path} {IS_POINTER}")
    settings = _settings(folder)
    lower_case = bool(settings.get("do_lower_case", True))
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad  # older files describe the token, newer ones name it
    padded = {"pad": str(pad)} if pad else {}
    # SigLIP's own class reads spiece.model; a tokenizer.json beside it is another program's conversion.
    has_json = (folder / "tokenizer.json").is_file()
    prefers_json = has_json and settings.get("tokenizer_class") != "SiglipTokenizer"
    if not prefers_json and (folder / "spiece.model").is_file():
        return Siglip(read_model(folder / "spiece.model"), name, lower_case=lower_case, **padded)
    if has_json:
        return _of_kind(_from_json(folder / "tokenizer.json"), name, lower_case, padded)
    if (folder / "vocab.txt").is_file():
        return WordPiece(read_vocabulary(folder / "vocab.txt", lower_case), name)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return BytePair(read_merges(folder), name, **padded)
    raise DataError(
        f"{folder}: a tokenizer folder holds tokenizer.json, vocab.txt, vocab.json and merges.txt, or spiece.model; "
        "this one has none of them; copy the tokenizer's files into it"
    )


def _of_kind(backend: tokenizers.Tokenizer, name: str, lower_case: bool, padded: dict[str, str]) -> Tokenizer:
    """Returns the tokenizer of the kind that tokenizer.json describes. padded: {"pad": token}, or {} if not known."""
    model = backend.model
    if isinstance(model, tokenizers.models.Unigram):
        return Siglip(backend, name, lower_case=lower_case, **padded)
    if isinstance(model, tokenizers.models.BPE) and (model.end_of_word_suffix == SUFFIX or backend.token_to_id(END)):
        return BytePair(backend, name, **padded)
    if isinstance(model, tokenizers.models.BPE) and model.byte_fallback:
        return Gemma(backend, name, **padded)
    return CleanedWordPiece(backend, name) if is_cleaned(backend) else WordPiece(backend, name)


def _settings(folder: Path) -> dict[str, Any]:
    """Returns tokenizer_config.json, {} if there is none. Raises DataError if it cannot be read."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}; fetch the file again") from None
    return settings if isinstance(settings, dict) else {}


def _from_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{path} is not a tokenizer of the tokenizers library: {error}") from None


def _from_hub(name: str) -> Tokenizer:
    """Loads from the hub's cache, else over the network."""
    try:
        folder = fetch_tokenizer(look_up(name, suffices=is_tokenizer))
    except UserError as error:
        raise NotLoadedError(f'tokenizer "{name}" is not a folder and cannot be loaded from the hub: {error}') from None
    return _from_folder(folder, name)


def fetch_tokenizer(repository: Repository) -> Path:
    """Fetches a tokenizer from the hub; returns the folder in the cache.

    Raises UserError, in one line, as `fetch`, and if the repository has no tokenizer.
    """
    present = [file for file in FILES if file in repository.files]
    if not set(present) & set(VOCABULARIES):
        where = "its copy in the cache" if repository.cached else "it"
        raise UserError(f"{where} has none of {', '.join(VOCABULARIES)}")
    copies = [fetch(repository, file) for file in present]
    return copies[0].parent


def is_tokenizer(files: Collection[str]) -> bool:
    """Returns whether files are a whole tokenizer: weights alone are not, nor is vocab.json without merges.txt."""
    return bool({"tokenizer.json", "vocab.txt", "spiece.model"} & {*files}) or {"vocab.json", "merges.txt"} <= {*files}
