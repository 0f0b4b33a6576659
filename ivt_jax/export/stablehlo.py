"""The encoders as compiled programs that need JAX alone, not this package: StableHLO, serialised by jax.export.

    encode = jax.export.deserialize(Path("image_encoder.stablehlo").read_bytes()).call
    encode(images)  # uint8 (b, H, W, 3) -> unit vectors, float32 (b, D), for any b, on CPU, GPU and TPU

`text_encoder.stablehlo` takes token ids (b, L) int32, padded with 0, for any L up to the model's text positions.

The parameters lie in the programs as constants, so that a file is all there is to hand on; the price is that the
attention, which both sides share, is in both files. What a side does not use (the other side's MLP and embeddings, the
heads of reconstruction) is left out.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from input_pipeline.errors import UserError
from ivt_jax.evaluation.embedding import encode_images, encode_texts
from ivt_jax.export.manifest import write_manifest
from ivt_jax.models.ivt import IVT

FILES = "image_encoder.stablehlo", "text_encoder.stablehlo"
PLATFORMS = "cpu", "cuda", "tpu"
LARGEST = 2_000_000_000  # bytes of parameters in one file: what jax.export writes cannot exceed 2 GiB


def write_stablehlo(folder: Path, model: IVT, params: Any, config: Any) -> None:
    """Writes the two encoders, tokenizer.json and manifest.json into `folder`, which is there and empty.

    They compute in the model's dtype, as evaluation and search do. Raises UserError where the parameters of an encoder
    exceed 2 GB.
    """
    c = model.config
    height, width = c.image_size
    shapes = (
        (jnp.uint8, export.symbolic_shape(f"batch, {height}, {width}, 3")),
        (jnp.int32, export.symbolic_shape("batch, length", constraints=[f"length <= {c.max_text_length}"])),
    )
    for name, encode, (dtype, shape) in zip(FILES, (encode_images, encode_texts), shapes, strict=True):
        program = _program(functools.partial(encode, model), params, jax.ShapeDtypeStruct(shape, dtype), model.dtype)
        (folder / name).write_bytes(program.serialize())
    write_manifest(folder, "stablehlo", FILES, c, config, platforms=PLATFORMS, dtype=c.dtype)


def _program(encode: Callable, params: Any, argument: jax.ShapeDtypeStruct, dtype: jnp.dtype) -> export.Exported:
    """`encode` with the parameters as constants; those without effect become zeros, which cost nothing."""
    leaves, tree = jax.tree.flatten(params)
    used = _used(encode, params, argument)
    size = sum(leaves[i].nbytes for i in used)
    if size > LARGEST:
        raise UserError(f"stablehlo: {size / 1e9:.1f} GB of parameters do not fit into one file of at most 2 GB")

    def alone(x: jax.Array) -> jax.Array:
        filled = [np.asarray(y) if i in used else jnp.zeros(y.shape, y.dtype) for i, y in enumerate(leaves)]
        return encode(jax.tree.unflatten(tree, filled), x)

    # As in search: by default accelerators round the factors of a float32 product.
    with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
        return export.export(jax.jit(alone), platforms=PLATFORMS)(argument)


def _used(encode: Callable, params: Any, argument: jax.ShapeDtypeStruct) -> set[int]:
    """The leaves of `params` that have an effect, by their numbers. JAX finds them for constant shapes alone."""
    constant = tuple(size if isinstance(size, int) else 1 for size in argument.shape)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    program = export.export(jax.jit(encode))(shapes, jax.ShapeDtypeStruct(constant, argument.dtype))
    return {i for i in program.module_kept_var_idx if i < len(jax.tree.leaves(params))}
