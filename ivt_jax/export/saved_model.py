"""The encoders as a TensorFlow SavedModel; input_pipeline/saved_model.py has the part that imports TensorFlow."""

from pathlib import Path

import input_pipeline.saved_model
from ivt_jax.export.manifest import Trained, write_manifest
from ivt_jax.export.stablehlo import encoders

SIGNATURES = "encode_images", "encode_texts"


def write_saved_model(folder: Path, trained: Trained) -> None:
    """Writes the SavedModel (in the model's dtype), the tokenizer and manifest.json into an empty folder.

    Raises UserError if TensorFlow is missing.
    """
    sides = dict(zip(SIGNATURES, encoders(trained.model, trained.params), strict=True))
    input_pipeline.saved_model.write_saved_model(folder, sides)
    files = "saved_model.pb", "saved_model.pb"
    more = {"signatures": SIGNATURES, "dtype": trained.model.config.dtype}
    write_manifest(folder, "saved_model", files, trained, smallest_batch=0, **more)
