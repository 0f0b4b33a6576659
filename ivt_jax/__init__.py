"""IVT: text-based person retrieval with one transformer for both modalities, in JAX.

    import ivt_jax
    model = ivt_jax.load("runs/demo")
    images = model.embed_images(["a.jpg", "b.jpg"])               # (2, D) float32, of length 1
    texts = model.embed_texts(["a woman in a red coat"])          # (1, D)
    searcher = ivt_jax.open_index("INDEX")
    answer = searcher.search("a man in a red hoodie")

Importing the package is cheap; JAX is imported by the first call.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ivt_jax.encoding.encoder import Encoder
    from ivt_jax.retrieval.searcher import Searcher

__all__ = ["load", "open_index"]


def load(workdir: Path | str) -> "Encoder":
    """Loads a model to embed images and texts with: the best checkpoint of a run, an export, or converted weights.

    Raises UserError if the folder holds no model.
    """
    from ivt_jax.encoding.encoder import Encoder

    return Encoder(workdir)


def open_index(place: Path | str, workdir: Path | str | None = None) -> "Searcher":
    """Opens an index, a folder or the address of a Qdrant server, together with the model that made it.

    workdir: folder of the model, if it is not where the index says. Raises UserError if either cannot be opened, or if
    the index was made by another model.
    """
    from ivt_jax.retrieval.searcher import Searcher

    return Searcher.open(place, workdir)
