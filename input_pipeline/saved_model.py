"""Writes the encoders as a TensorFlow SavedModel, which loads with TensorFlow alone.

    encode = tf.saved_model.load(folder).signatures
    encode["encode_images"](images=images)["embeddings"]  # uint8 (b, H, W, 3) -> float32 (b, D); b may be 0
    encode["encode_texts"](ids=ids, mask=mask)["embeddings"]  # int32 and bool (b, L) -> float32 (b, D)

It is in this package because no other may import TensorFlow.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ivt_jax.common.errors import UserError

STABLEHLO_VERSION = "1.13.0"  # TensorFlow 2.21 reads no later version


def write_saved_model(folder: Path, encoders: Mapping[str, Any]) -> None:
    """Writes a SavedModel with a signature for each of `encoders` into the existing empty `folder`.

    An encoder has the fields of ivt_jax/export/stablehlo.py's `Encoder`. Parameters become variables, shared ones a
    single variable; as constants, a ViT-B took 10 GB of memory to save and to load. Raises UserError if TensorFlow is
    not installed.
    """
    try:
        import tensorflow as tf
        from jax.experimental import jax2tf
    except ImportError:
        raise UserError("a SavedModel needs TensorFlow, which is not installed: pip install tensorflow-cpu") from None

    leaves = {id(leaf): leaf for encoder in encoders.values() for leaf in encoder.parameters}
    variables = {key: tf.Variable(leaf, trainable=False) for key, leaf in leaves.items()}

    def signature(encoder: Any) -> Any:
        parameters = [variables[id(leaf)] for leaf in encoder.parameters]
        call = jax2tf.convert(
            encoder.function,
            polymorphic_shapes=[None, *[f"({encoder.shape})"] * len(encoder.inputs)],
            polymorphic_constraints=encoder.constraints,
            native_serialization_platforms=("cpu", "cuda", "tpu"),
            with_gradient=False,
        )
        sizes = [int(size) if size.isdecimal() else None for size in encoder.shape.split(", ")]
        given = [tf.TensorSpec(sizes, dtype, name=name) for name, dtype in encoder.inputs.items()]

        def embed(*inputs: Any) -> dict[str, Any]:  # JAX's symbolic dimensions are at least 1
            none = tf.equal(tf.shape(inputs[0])[0], 0)
            embeddings = tf.cond(none, lambda: tf.zeros((0, encoder.width)), lambda: call(parameters, *inputs))
            return {"embeddings": embeddings}

        return tf.function(embed, autograph=False, input_signature=given).get_concrete_function()

    with _readable_programs():
        signatures = {name: signature(encoder) for name, encoder in encoders.items()}
    module = tf.Module()
    module.parameters = list(variables.values())
    tf.saved_model.save(module, str(folder), signatures=signatures)


@contextlib.contextmanager
def _readable_programs() -> Iterator[None]:
    """Makes JAX write STABLEHLO_VERSION; its default is for readers up to four weeks older than JAX."""
    from jax._src.export import _export

    chosen = _export.hlo.get_version_from_compatibility_requirement
    _export.hlo.get_version_from_compatibility_requirement = lambda requirement: STABLEHLO_VERSION
    try:
        yield
    finally:
        _export.hlo.get_version_from_compatibility_requirement = chosen
