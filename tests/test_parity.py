"""The tower and the loss against numbers computed with the PyTorch release at a tiny size (tests/data)."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.conversion import params_from_release
from ivt_jax.losses.contrastive import cmpm_loss
from ivt_jax.models.ivt import IVT

RELEASE = np.load(Path(__file__).parent / "data" / "release_tiny.npz")
TENSORS = {name.removeprefix("weights/"): RELEASE[name] for name in RELEASE.files if name.startswith("weights/")}
CONFIG, PARAMS = params_from_release(TENSORS, num_heads=4, image_size=(64, 32), stride=12)


@pytest.fixture(scope="module")
def params():
    return PARAMS


def embed_images(params, keep=None):
    return IVT(CONFIG).apply({"params": params}, RELEASE["images"], keep=keep, method="encode_image")


def embed_texts(params, keep=None):
    ids, mask = RELEASE["ids"], RELEASE["mask"].astype(bool)
    return IVT(CONFIG).apply({"params": params}, ids, mask, keep=keep, method="encode_text")


def assert_close(ours, theirs, tolerance=1e-5):
    """Relative to the largest value of the array, as rounding in a sum is."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_image_tokens(params):
    assert_close(embed_images(params), RELEASE["eval/image_tokens"])


def test_text_tokens(params):
    mask = RELEASE["mask"].astype(bool)
    assert_close(np.asarray(embed_texts(params))[mask], RELEASE["eval/text_tokens"][mask])


@pytest.mark.parametrize("key", ["eval/cmpm", "train/loss_1"])  # training had no dropout and dropped no token
def test_cmpm(params, key):
    loss = cmpm_loss(embed_images(params)[:, 0], embed_texts(params)[:, 0], RELEASE["person_ids"])
    assert_close(loss, RELEASE[key])


@pytest.mark.parametrize("modality", ["image", "text"])
def test_masked_alignment(params, modality):
    kept = jnp.asarray(RELEASE[f"masked/{modality}_kept"])[None].astype(jnp.int32)
    tokens = (embed_images if modality == "image" else embed_texts)(params, keep=(kept, None))
    assert_close(tokens[:, 0], RELEASE[f"masked/{modality}_cls"])


def test_masked_loss(params):
    image, text = (jnp.asarray(RELEASE[f"masked/{modality}_kept"])[None] for modality in ("image", "text"))
    images, texts = embed_images(params, keep=(image, None)), embed_texts(params, keep=(text, None))
    assert_close(cmpm_loss(images[:, 0], texts[:, 0], RELEASE["person_ids"]), RELEASE["masked/cmpm"])
