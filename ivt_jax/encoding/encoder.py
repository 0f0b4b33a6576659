"""A model's image side on the devices of this machine, and what says which model it is."""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import xla_bridge  # nothing public says whether JAX has started
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ivt_jax.common.startup import set_xla_flags
from ivt_jax.encoding.embedding import embed, encode_images
from ivt_jax.encoding.images import preprocessing
from ivt_jax.models.ivt import IVT, IVTConfig
from ivt_jax.run.checkpoint import restore_params
from ivt_jax.run.parameter_file import model_digest


class ImageEncoder:
    """The encoder of a run, an export or converted weights; every device of this process takes its share of a batch.

    Attributes: config, the run's; model; params, on all devices; size (height, width) of its images; devices, a count.
    """

    def __init__(self, workdir: Path | str):
        """Raises UserError as `restore_params` and `set_xla_flags` do."""
        if not xla_bridge.backends_are_initialized():  # in a program of the user's, not one of our commands
            set_xla_flags()
        self.config, params, _ = restore_params(workdir)
        self.model = IVT(IVTConfig.from_config(self.config.model))
        if self.config.model.dtype == "float32":  # as in training: by default accelerators round a product's factors
            jax.config.update("jax_default_matmul_precision", "highest")
        self.size = tuple(self.config.model.image_size)
        self.devices = jax.local_device_count()
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self.params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._rows = NamedSharding(mesh, PartitionSpec("data"))

    def embed(self, batches: Iterator[np.ndarray], batch_size: int = 0) -> np.ndarray:
        """uint8 batches (b, H, W, 3) -> (N, D) float32, L2-normalised, N maybe 0.

        Batches are padded to one size, `batch_size` or the first one's, and compiled once.
        """
        first = next(batches, None)
        if first is None:
            return np.empty((0, self.config.model.width), np.float32)
        return embed(self._encode, itertools.chain([first], batches), batch_size)

    def _encode(self, batch: np.ndarray) -> jax.Array:
        """Pads to a multiple of the devices; `embed` cuts that off again."""
        padded = np.pad(batch, [(0, -len(batch) % self.devices), (0, 0), (0, 0), (0, 0)])
        return encode_images(self.model, self.params, jax.device_put(padded, self._rows))

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What embeddings must share to be compared: the model, by digest, and the preprocessing of pictures."""
        width = self.config.model.width
        digest = model_digest(self.config, self.params)
        return {"model": digest, "dimension": width, "images": preprocessing(self.size)}
