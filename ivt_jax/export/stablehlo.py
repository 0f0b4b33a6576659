"""The encoders as compiled programs for JAX without this package: StableHLO, serialised by jax.export.

    encode = jax.export.deserialize(Path("image_encoder.stablehlo").read_bytes()).call
    encode(images)  # uint8 (b, H, W, 3) -> unit vectors, float32 (b, D), for any b from 1, on CPU, GPU and TPU

The text encoder takes token ids (b, L) int32 and their mask (b, L) bool, False at padding. A row with an id outside of
the vocabulary, or that begins with padding, gives NaN. b = 0 raises ValueError: symbolic dimensions of jax.export are
at least 1. The parameters that a side uses are constants of its program.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ivt_jax.common.errors import UserError
from ivt_jax.encoding.embedding import encode_images, encode_texts
from ivt_jax.export.manifest import Trained, write_manifest
from ivt_jax.models.build import Model

FILES = "image_encoder.stablehlo", "text_encoder.stablehlo"
PLATFORMS = "cpu", "cuda", "tpu"
LARGEST = 2_000_000_000  # bytes of parameters in one file: jax.export cannot write more than 2 GiB


class Encoder(NamedTuple):
    """One side of a model, `function(parameters, *arguments)`, with the parameters that affect it."""

    function: Callable[..., jax.Array]
    parameters: list[np.ndarray]
    inputs: dict[str, Any]  # name of each argument -> its dtype
    shape: str  # of every argument, for `jax.export.symbolic_shape`
    width: int  # D of the embeddings
    constraints: tuple[str, ...] = ()  # of the shape

    @property
    def arguments(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes of the arguments, with symbolic sizes."""
        shape = export.symbolic_shape(self.shape, constraints=self.constraints)
        return [jax.ShapeDtypeStruct(shape, dtype) for dtype in self.inputs.values()]


def encoders(model: Model, params: Any) -> tuple[Encoder, Encoder]:
    """Returns the image encoder and the text encoder."""
    shape, width = "batch, {}, {}, 3".format(*model.config.image_size), model.config.embedding_width
    constraint, of_texts = f"length <= {model.config.max_text_length}", {"ids": np.int32, "mask": np.bool_}
    image = Encoder(functools.partial(encode_images, model), [], {"images": np.uint8}, shape, width)
    text = Encoder(functools.partial(encode_texts, model), [], of_texts, "batch, length", width, (constraint,))
    # As in search: by default accelerators round the factors of a float32 product.
    precision = "highest" if model.dtype == jnp.float32 else "default"
    return _pruned(image, params, precision), _pruned(text, params, precision)


def write_stablehlo(folder: Path, trained: Trained) -> None:
    """Writes the two encoders, the tokenizer and manifest.json into an empty folder.

    They compute in the model's dtype, as evaluation and search do. Raises UserError if the parameters of an encoder
    exceed 2 GB.
    """
    for file, encoder in zip(FILES, encoders(trained.model, trained.params), strict=True):
        size = sum(leaf.nbytes for leaf in encoder.parameters)
        if size > LARGEST:
            raise UserError(f"stablehlo: {size / 1e9:.1f} GB of parameters do not fit into one file of at most 2 GB")
        alone = jax.jit(functools.partial(encoder.function, encoder.parameters))
        (folder / file).write_bytes(export.export(alone, platforms=PLATFORMS)(*encoder.arguments).serialize())
    more = {"platforms": PLATFORMS, "dtype": trained.model.config.dtype}
    write_manifest(folder, "stablehlo", FILES, trained, smallest_batch=1, **more)


def _pruned(encoder: Encoder, params: Any, precision: str) -> Encoder:
    """Returns the encoder with only the parameters that affect it, and a function that takes them as a list."""
    leaves, tree = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    # JAX finds unused arguments only for constant shapes.
    sizes = [size if isinstance(size, int) else 1 for size in encoder.arguments[0].shape]
    constant = [jax.ShapeDtypeStruct(sizes, dtype) for dtype in encoder.inputs.values()]
    whole = export.export(jax.jit(encoder.function))(jax.tree.unflatten(tree, shapes), *constant)
    used = [i for i in whole.module_kept_var_idx if i < len(leaves)]

    def function(parameters: Sequence[Any], *arguments: jax.Array) -> jax.Array:
        filled = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]  # unused, so they cost nothing
        for i, leaf in zip(used, parameters, strict=True):
            filled[i] = leaf
        with jax.default_matmul_precision(precision):
            return encoder.function(jax.tree.unflatten(tree, filled), *arguments)

    return encoder._replace(function=function, parameters=[np.asarray(leaves[i]) for i in used])
