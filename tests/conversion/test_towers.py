"""Both towers of CLIP and SigLIP: features against transformers' own, names at the published sizes, one-line errors."""

from pathlib import Path

import jax
import numpy as np
import pytest

from ivt_jax.conversion.clip import convert_clip_towers
from ivt_jax.conversion.siglip import convert_siglip
from ivt_jax.conversion.vit import Source
from ivt_jax.models.build import model_of
from ivt_jax.models.config import IVTConfig, TextConfig

GIVEN = np.load(Path(__file__).parent.parent / "data/towers_tiny.npz")
SIZES = IVTConfig(image_size=(20, 20), patch_size=5, stride=5, width=12, num_heads=3)
TEXTS = {"clip": TextConfig(width=8, num_heads=2), "siglip": TextConfig(width=12, num_heads=2)}


def weights(kind):
    prefix = f"{kind}/weights/"
    return {name.removeprefix(prefix): GIVEN[name] for name in GIVEN.files if name.startswith(prefix)}


def convert(kind, tensors, activation="quick_gelu", **changes):
    config = IVTConfig(**{**vars(SIZES), "text": TEXTS[kind], **changes})
    source = Source(tensors, kind)
    return convert_clip_towers(source, config, activation) if kind == "clip" else convert_siglip(source, config)


def embed(made, pixels, ids, mask):
    model, params = model_of(made.model_config), {"params": made.params}
    image = jax.jit(lambda: model.apply(params, pixels, method="embed_image"))()
    return image, jax.jit(lambda: model.apply(params, ids, mask, method="embed_text"))()


CASES = [("clip", "quick_gelu"), ("clip", "gelu"), ("siglip", "gelu_tanh")]


@pytest.mark.parametrize(("kind", "activation"), CASES)
def test_features_are_those_of_transformers(kind, activation):
    made = convert(kind, weights(kind), activation)
    found = embed(made, GIVEN["pixels"], GIVEN[f"{kind}/ids"], GIVEN[f"{kind}/mask"])
    for side, features in zip(("image", "text"), found, strict=True):
        expected = GIVEN[f"{kind}/{activation}/{side}"]
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=side)
        assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
