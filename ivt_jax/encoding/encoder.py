"""A model on the devices of this machine: from pictures and texts to embeddings."""

import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import xla_bridge  # nothing public says whether JAX has started
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from input_pipeline.tokenizer import Tokenizer
from ivt_jax.common.ahead import done_ahead
from ivt_jax.common.errors import UserError
from ivt_jax.common.startup import set_xla_flags
from ivt_jax.encoding.embedding import embed, embed_texts, encode_images
from ivt_jax.encoding.images import load_image, preprocessing
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import restore_params
from ivt_jax.run.parameter_file import model_digest
from ivt_jax.run.workdir import folder_tokenizer


class Encoder:
    """The model of a run, an export or converted weights. Each device of this process takes a share of every batch.

    Attributes: config, of the run; model; params, on all devices; size (height, width) of its images; devices, a count.
    """

    def __init__(self, workdir: Path | str):
        """Raises UserError as `restore_params` and `set_xla_flags` do."""
        if not xla_bridge.backends_are_initialized():  # in a program of the user's, not one of our commands
            set_xla_flags()
        self.config, params, _ = restore_params(workdir)
        self._workdir = Path(workdir).absolute()  # the tokenizer is read later, maybe from another current folder
        # With a loop one block is traced and compiled for all, so that a query starts sooner.
        self.model = build_model({**self.config.model, "unroll": False})
        if self.config.model.dtype == "float32":  # as in training: by default accelerators round a product's factors
            jax.config.update("jax_default_matmul_precision", "highest")
        self.size = tuple(self.config.model.image_size)
        self.devices = jax.local_device_count()
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self.params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._rows = NamedSharding(mesh, PartitionSpec("data"))

    def embed_images(self, images: Iterable[Path | str | Image.Image | np.ndarray], batch_size: int = 64) -> np.ndarray:
        """Embeds pictures, any number of any sizes -> (N, D) float32, L2-normalised.

        images: files, PIL images, or uint8 RGB arrays (H, W, 3). batch_size: pictures that a device takes at once.
        Raises UserError if a picture cannot be read, and for anything else in `images`.
        """
        pictures, size = _listed(images, "pictures", batch_size), batch_size * self.devices
        loaded = done_ahead(functools.partial(load_image, size=self.size), pictures, 2 * size)
        pixels = (future.result() for _, future in loaded)
        return self.embed(np.stack(batch) for batch in iter(lambda: list(itertools.islice(pixels, size)), []))

    def embed_texts(self, texts: Iterable[str], batch_size: int = 256) -> np.ndarray:
        """Embeds descriptions -> (M, D) float32, L2-normalised. Text beyond the model's length is cut off.

        Raises UserError for a text that has no word the model knows.
        """
        sentences, length = _listed(texts, "texts", batch_size), self.config.text.length["sentence"]
        for number, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise UserError(f"texts: number {number} is {type(sentence).__name__}; expected a string")
            *_, nothing = self.tokenizer.unread(sentence, length)
            if nothing:
                raise UserError(f"texts: number {number} has no word that the model knows: {sentence[:60]!r}")
        ids = self.tokenizer.encode(sentences, length)
        return embed_texts(self.model, self.params, ids, self.tokenizer.mask(ids), batch_size)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's texts. Raises UserError if the folder's is missing or another one."""
        return folder_tokenizer(self._workdir, self.config)

    def embed(self, batches: Iterable[np.ndarray], batch_size: int = 0) -> np.ndarray:
        """uint8 batches (b, H, W, 3) -> (N, D) float32, L2-normalised; N may be 0.

        Batches are padded to one size, `batch_size` or the first one's, and compiled once.
        """
        return embed(self._encode, ((batch,) for batch in batches), self.model.config.embedding_width, batch_size)

    def _encode(self, batch: np.ndarray) -> jax.Array:
        """Pads the batch to a multiple of the devices; `embed` drops the padding."""
        padded = np.pad(batch, [(0, -len(batch) % self.devices), (0, 0), (0, 0), (0, 0)])
        return encode_images(self.model, self.params, jax.device_put(padded, self._rows))

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What comparable embeddings share: digest of the model, dimension, pre-processing of pictures."""
        digest = model_digest(self.config, self.params)
        dimension, images = self.model.config.embedding_width, preprocessing(self.model.config)
        return {"model": digest, "dimension": dimension, "images": images}


def _listed(items: Iterable[Any], noun: str, batch_size: int) -> list[Any]:
    """Returns the items as a list. Raises UserError for a single string or picture, and for a batch size below 1."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; choose 1 or more")
    if isinstance(items, str | Path | Image.Image):
        raise UserError(f"expected a list of {noun}, not one: put it in brackets")
    return list(items)
