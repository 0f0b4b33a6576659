"""The tower and the loss against numbers computed with the PyTorch release at a tiny size (tests/data)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.losses.contrastive import cmpm_loss
from ivt_jax.models.ivt import IVT, IVTConfig

RELEASE = np.load(Path(__file__).parent / "data" / "release_tiny.npz")
CONFIG = IVTConfig(
    image_size=(64, 32), patch_size=16, stride=12, width=48, depth=3, num_heads=4, vocab_size=120, max_text_length=32,
    dropout=0.0, drop_path=0.0,
)  # fmt: skip


def linear(name):
    return {"kernel": weight(name + ".weight").T, "bias": weight(name + ".bias")}


def norm(name):
    return {"scale": weight(name + ".weight"), "bias": weight(name + ".bias")}


def weight(name):
    return RELEASE["weights/encoder_vl." + name]


def block(i):
    layer = f"blocks.{i}."
    mlps = {m: {fc: linear(f"{layer}{m}.{fc}") for fc in ("fc1", "fc2")} for m in ("mlp_vis", "mlp_txt")}
    attn = {part: linear(f"{layer}attn.{part}") for part in ("qkv", "proj")}
    return {"norm1": norm(layer + "norm1"), "attn": attn, "norm2": norm(layer + "norm2"), **mlps}


@pytest.fixture(scope="module")
def params():
    kernel = weight("patch_embed.proj.weight").transpose(2, 3, 1, 0).reshape(-1, CONFIG.width)
    return {
        "image_embedding": {
            "kernel": kernel,
            "bias": weight("patch_embed.proj.bias"),
            "cls": weight("cls_token"),
            "mask_token": np.zeros((1, 1, CONFIG.width), np.float32),
            "pos_embed": weight("pos_embed"),
            "type_embed": weight("type_embed"),
        },
        "text_embedding": {
            "word": weight("embeddings.word_embeddings.weight"),
            "position": weight("embeddings.position_embeddings.weight"),
            "token_type": weight("embeddings.token_type_embeddings.weight"),
            **norm("embeddings.LayerNorm"),
        },
        "blocks": {**jax.tree.map(lambda *x: np.stack(x), *[block(i) for i in range(3)]), "norm": norm("norm")},
    }


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
