"""The trained model that every format is written from; manifest.json, which describes a format to other programs."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline.tokenizer import Tokenizer
from ivt_jax.common.files import digest
from ivt_jax.encoding.images import preprocessing
from ivt_jax.models.build import Model
from ivt_jax.run.workdir import write_json


class Trained(NamedTuple):
    """A model, its parameters (NumPy arrays), the config of its run, and the tokenizer of its texts."""

    model: Model
    params: Any
    config: ConfigDict
    tokenizer: Tokenizer


def write_manifest(
    folder: Path, form: str, encoders: tuple[str, str], trained: Trained, smallest_batch: int, **more: Any
) -> None:
    """Writes the tokenizer's files and manifest.json into `folder`, which has the encoders' files.

    form: name of the format. encoders: names of the image encoder's and the text encoder's file. smallest_batch: 0 if
    the encoders return (0, D) for an empty batch, 1 if they refuse it. more: further keys of this form.
    """
    model_config, tokenizer = trained.model.config, trained.tokenizer
    tokenizer.save(folder)
    images = {"name": "images", "dtype": "uint8", "shape": ["batch", *model_config.image_size, 3]}
    ids, mask = (
        {"name": name, "dtype": dtype, "shape": ["batch", "length"]}
        for name, dtype in (("ids", "int32"), ("mask", "bool"))
    )
    output = {"name": "embeddings", "dtype": "float32", "shape": ["batch", model_config.embedding_width]}
    manifest = {
        "format": form,
        "format_version": 2,
        **more,
        "encoders": {
            "image": {"file": encoders[0], "inputs": [images], "outputs": [output]},
            "text": {"file": encoders[1], "inputs": [ids, mask], "outputs": [output]},
        },
        "smallest_batch": smallest_batch,
        "embedding": {"dimension": model_config.embedding_width, "normalised": "L2", "compared_by": "inner product"},
        "images": preprocessing(model_config) | {"normalised_by": "the encoder: it takes pixels from 0 to 255"},
        "text": {
            "tokenizer": "tokenizer.json",
            "layout": tokenizer.layout,
            "begin_id": tokenizer.begin_id,
            "end_id": tokenizer.end_id,
            "pad_id": tokenizer.pad_id,
            "mask": tokenizer.padding,
            "padding_attended": tokenizer.attends_to_padding,
            "unk_id": tokenizer.unk_id,
            "vocab_size": model_config.vocab_size,
            "embedded_as_nan": "a row with an id outside of 0 to vocab_size - 1, or one that begins with padding",
            "length": trained.config.text.length["sentence"],
            "max_length": model_config.max_text_length,
            "lower_cased": bool((tokenizer.encode(["A RED coat"], 16) == tokenizer.encode(["a red Coat"], 16)).all()),
        },
    }
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest["sha256"] = {str(path.relative_to(folder)): digest(path) for path in files}
    write_json(folder / "manifest.json", manifest)
