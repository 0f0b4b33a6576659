"""What a compiled form needs to be used without this package: manifest.json and the tokenizer, beside the encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivt_jax.encoding.images import preprocessing
from ivt_jax.export.trained import Trained
from ivt_jax.models.ivt import PAD_ID
from ivt_jax.run.workdir import digest, write_json

FORMAT_VERSION = 1


def write_manifest(
    folder: Path, form: str, encoders: tuple[str, str], trained: Trained, smallest_batch: int, **more: Any
) -> None:
    """Writes the tokenizer's files and manifest.json; `more` is said of the form alone.

    form: its name; encoders: the names of the image's and the text's file, which lie in `folder` already;
    smallest_batch: 0 if the encoders return (0, D) for a batch of no rows, 1 if they refuse it.
    """
    model, config, tokenizer = trained.model.config, trained.config, trained.tokenizer
    tokenizer.save(folder)
    height, width = model.image_size
    images = {"name": "images", "dtype": "uint8", "shape": ["batch", height, width, 3]}
    ids = {"name": "ids", "dtype": "int32", "shape": ["batch", "length"]}
    output = {"name": "embeddings", "dtype": "float32", "shape": ["batch", model.width]}
    manifest = {
        "format": form,
        "format_version": FORMAT_VERSION,
        **more,
        "encoders": {
            "image": {"file": encoders[0], "inputs": [images], "outputs": [output]},
            "text": {"file": encoders[1], "inputs": [ids], "outputs": [output]},
        },
        "smallest_batch": smallest_batch,
        "embedding": {"dimension": model.width, "normalised": "L2", "compared_by": "inner product"},
        "images": {
            **preprocessing(model.image_size),
            "normalised_by": "the encoder: it takes pixels from 0 to 255",
        },
        "text": {
            "tokenizer": "tokenizer.json",
            "layout": "[CLS], the pieces of the text cut to length - 2, [SEP], padded on the right",
            "cls_id": tokenizer.cls_id,
            "sep_id": tokenizer.sep_id,
            "pad_id": PAD_ID,
            "unk_id": tokenizer.unk_id,
            "vocab_size": model.vocab_size,
            "embedded_as_nan": "a row with an id outside of 0 to vocab_size - 1, or one that begins with pad_id",
            "length": config.text.length["sentence"],
            "max_length": model.max_text_length,
            "lower_cased": bool((tokenizer.encode(["A RED coat"], 16) == tokenizer.encode(["a red Coat"], 16)).all()),
        },
        "sha256": _digests(folder),
    }
    write_json(folder / "manifest.json", manifest)


def _digests(folder: Path) -> Mapping[str, str]:
    return {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
