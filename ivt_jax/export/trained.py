"""The input of every export format."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from input_pipeline.tokenizer import Tokenizer
from ivt_jax.models.ivt import IVT


class Trained(NamedTuple):
    """A model, its parameters (NumPy arrays), the config of its run, and the tokenizer of its texts."""

    model: IVT
    params: Any
    config: ConfigDict
    tokenizer: Tokenizer
