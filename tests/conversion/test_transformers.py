"""Models of transformers, with random weights: as the library writes them, and against what it computes of them."""

import numpy as np
import pytest

from ivt_jax.conversion.clip import convert_clip, convert_clip_towers
from ivt_jax.conversion.files import read_tensors
from ivt_jax.conversion.siglip import convert_siglip
from ivt_jax.conversion.vit import Source, convert_vit
from ivt_jax.encoding.pixels import normalise
from ivt_jax.models.build import model_of
from ivt_jax.models.config import IVTConfig, TextConfig
from ivt_jax.models.ivt import IVT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
towers_torch = pytest.importorskip("tests.reference.towers_torch")  # which imports PyTorch

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
MODEL = IVTConfig(image_size=(20, 20), stride=5, num_heads=4)


def noisy(module):
    """In evaluation mode; what starts at 0 or 1 would hide mistakes, so every parameter gets noise of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def images(count=2):
    return np.random.default_rng(2).normal(size=(count, 20, 20, 3)).astype(np.float32)


def channels_first(pixels):
    return torch.tensor(pixels.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def vit():
    config = transformers.ViTConfig(**SIZES, image_size=20, patch_size=5, layer_norm_eps=1e-6)
    return noisy(transformers.ViTModel(config))


@pytest.fixture(scope="module")
def bert():
    return noisy(transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=30, max_position_embeddings=14)))


def written(model, folder):
    model.save_pretrained(folder)
    return Source(read_tensors(folder / "model.safetensors"), "model.safetensors")


def kept(model, folder):
    """Its state dict, under the names that the modules have in memory, which differ from those of the file."""
    torch.save(model.state_dict(), folder / "state.pth")
    return Source(read_tensors(folder / "state.pth"), "state.pth")


def without_types(params):
    embedding = params["image_embedding"]
    return {**params, "image_embedding": {**embedding, "type_embed": np.zeros_like(embedding["type_embed"])}}


@pytest.mark.parametrize("store", [written, kept])
def test_the_tower_computes_what_the_vit_does(tmp_path, vit, bert, store):
    made = convert_vit(store(vit, tmp_path), written(bert, tmp_path), MODEL, "bilinear", 0)
    ours = IVT(made.model_config).apply({"params": without_types(made.params)}, images(), method="encode_image")
    with torch.no_grad():
        theirs = vit(pixel_values=channels_first(images())).last_hidden_state.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    assert np.abs(theirs[0, 0] - theirs[1, 0]).max() > 0.01  # or else the test would show nothing


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def activation(request):
    return request.param


@pytest.fixture(scope="module", params=["whole", "vision"])
def clip(request, activation):
    """Texts and all, and the image tower alone, whose files have other names."""
    torch.manual_seed(0)
    vision = {**SIZES, "image_size": 20, "patch_size": 5, "hidden_act": activation}
    if request.param == "vision":
        return noisy(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)))
    text = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4}
    text |= {"vocab_size": 33, "max_position_embeddings": 7, "bos_token_id": 0, "eos_token_id": 1}
    return noisy(transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text)))


@pytest.mark.parametrize("store", [written, kept])
def test_the_tower_computes_what_clip_does(tmp_path, clip, activation, bert, store):
    made = convert_clip(store(clip, tmp_path), written(bert, tmp_path), MODEL, activation, "bilinear", 0)
    pixels = np.random.default_rng(2).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    ours = IVT(made.model_config).apply(
        {"params": made.params}, normalise(pixels, made.model_config), method="encode_image"
    )[:, 0]
    mean, deviation = transformers.image_utils.OPENAI_CLIP_MEAN, transformers.image_utils.OPENAI_CLIP_STD
    inputs = channels_first(((pixels / 255 - mean) / deviation).astype(np.float32))
    with torch.no_grad():
        theirs = getattr(clip, "vision_model", clip)(pixel_values=inputs).pooler_output.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01


@pytest.mark.parametrize("store", [written, kept])
def test_texts_are_embedded_as_bert_does(tmp_path, vit, bert, store):
    made = convert_vit(written(vit, tmp_path), store(bert, tmp_path), MODEL, "bilinear", 0)
    ids = np.random.default_rng(3).integers(0, 30, (2, 9))

    def embed(tower, ids):
        return tower.text_embedding(ids, tower.dtype)

    ours = IVT(made.model_config).apply({"params": made.params}, ids, method=embed)
    with torch.no_grad():
        theirs = bert.embeddings(torch.tensor(ids)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("store", [written, kept])
@pytest.mark.parametrize(("kind", "ours"), [("clip", "quick_gelu"), ("clip", "gelu"), ("siglip", "gelu_tanh")])
def test_both_towers_compute_what_transformers_does(tmp_path, kind, ours, store):
    model = towers_torch.build(kind, towers_torch.ACTIVATIONS[kind][ours])
    ids, mask = towers_torch.texts(kind)
    source, text = store(model, tmp_path), TextConfig(width=8 if kind == "clip" else 12, num_heads=2)
    sizes = IVTConfig(image_size=(20, 20), patch_size=5, stride=5, width=12, num_heads=3, text=text)
    made = convert_clip_towers(source, sizes, ours) if kind == "clip" else convert_siglip(source, sizes)
    params, tower = {"params": made.params}, model_of(made.model_config)
    image, text = towers_torch.features(model, ids)
    for method, inputs, theirs in (("embed_image", (towers_torch.pixels(),), image), ("embed_text", (ids, mask), text)):
        found = tower.apply(params, *inputs, method=method)
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
