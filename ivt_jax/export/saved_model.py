"""The encoders as a TensorFlow SavedModel; input_pipeline/saved_model.py, which may import TensorFlow, makes it."""

from pathlib import Path
from typing import Any

import input_pipeline.saved_model
from ivt_jax.export.manifest import write_manifest
from ivt_jax.export.stablehlo import encoders
from ivt_jax.models.ivt import IVT

SIGNATURES = "encode_images", "encode_texts"


def write_saved_model(folder: Path, model: IVT, params: Any, config: Any) -> None:
    """Writes the SavedModel, tokenizer.json and manifest.json into `folder`, which is there and empty.

    It computes in the model's dtype. Raises UserError where TensorFlow is missing.
    """
    sides = dict(zip(SIGNATURES, encoders(model, params), strict=True))
    input_pipeline.saved_model.write_saved_model(folder, sides)
    c, files = model.config, ("saved_model.pb", "saved_model.pb")
    write_manifest(folder, "saved_model", files, c, config, signatures=SIGNATURES, dtype=c.dtype)
