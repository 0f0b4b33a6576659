"""Both towers of CLIP and SigLIP: features against transformers' own, names at the published sizes, one-line errors."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import cuhk
from ivt_jax.common.config_flag import read_config
from ivt_jax.common.errors import UserError
from ivt_jax.conversion import clip, siglip
from ivt_jax.conversion.clip import convert_clip_towers
from ivt_jax.conversion.positions import resize_positions
from ivt_jax.conversion.siglip import convert_siglip
from ivt_jax.conversion.tensors import shapes as named_shapes
from ivt_jax.conversion.tensors import table
from ivt_jax.conversion.vit import Source
from ivt_jax.models.build import model_of, parameter_shapes
from ivt_jax.models.config import IVTConfig, TextConfig
from ivt_jax.training.config_check import check_config
from ivt_jax.training.init_from import choose_actions

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


# ---- other names of the same tensors

OPENAI = {  # transformers' names -> OpenAI's
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks", "text_model.encoder.layers": "transformer.resblocks",
    "text_model.embeddings.token_embedding": "token_embedding", "text_model.final_layer_norm": "ln_final",
    "text_model.embeddings.position_embedding.weight": "positional_embedding", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def as_openai(tensors):
    """Query, key and value are one tensor, the projections are turned, and the sizes are beside."""
    found = {"input_resolution": np.array(20), "context_length": np.array(9), "vocab_size": np.array(33)}
    for name, tensor in tensors.items():
        new = name
        for old, ours in OPENAI.items():
            new = new.replace(old, ours)
        if name in ("visual_projection.weight", "text_projection.weight"):
            found[{"v": "visual.proj", "t": "text_projection"}[name[0]]] = tensor.T
        elif "q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[new.replace("self_attn.q_proj.", "attn.in_proj_")] = np.concatenate(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            found[new] = tensor
    return found


def assert_same(one, other):
    assert one.model_config == other.model_config
    first, second = (flatten_dict(made.params, sep="/") for made in (one, other))
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=path)


@pytest.mark.parametrize("prefix", ["", "module.", "text."])
def test_both_namings_of_clip_give_the_same_parameters(prefix):
    tensors = as_openai(weights("clip"))
    is_text = prefix == "text."  # open_clip's models that keep the text tower apart
    moved = {
        (prefix if not is_text or not name.startswith(("visual", "logit")) else "") + name: tensor
        for name, tensor in tensors.items() if not is_text or tensor.dtype != int
    }  # fmt: skip
    assert_same(convert("clip", moved), convert("clip", weights("clip")))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scales_are_read_as_scalars_or_with_an_axis(kind):
    tensors = weights(kind)
    other = {name: x.reshape(() if x.ndim else 1) if name.startswith("logit") else x for name, x in tensors.items()}
    made = convert(kind, tensors)
    assert made.params["similarity"]["log_scale"] == tensors["logit_scale"].item()
    assert kind == "clip" or made.params["similarity"]["bias"] == tensors["logit_bias"].item()
    assert_same(convert(kind, other), made)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_tensor_is_accounted_for(kind):
    tensors = {**weights(kind), "text_model.embeddings.position_ids": np.arange(9)[None]}
    tensors["vision_model.embeddings.position_ids"] = np.arange(16)[None]
    made = convert(kind, tensors, image_size=(30, 10))
    assert sorted(use.name for use in made.uses if use.name) == sorted(tensors)
    assert {use.name for use in made.uses if use.action == "ignored"} == {*tensors} - {*weights(kind)}
    shapes = {path: value.shape for path, value in flatten_dict(made.params, sep="/").items()}
    assert shapes == parameter_shapes(made.model_config)
    initialised = [use.note for use in made.uses if use.action == "initialised"]
    assert initialised == (["image_embedding/bias, zeros: CLIP has none"] if kind == "clip" else [])
    assert "image_embedding/pos_embed, 4x4 -> 6x2 patches, bilinear" in table(made.uses)
    old = weights(kind)["vision_model.embeddings.position_embedding.weight"][None]
    np.testing.assert_array_equal(made.params["image_embedding"]["pos_embed"], resize_positions(old, (4, 4), (6, 2)))


def test_the_options_are_those_of_the_models():
    c = convert("clip", weights("clip"), "gelu").model_config
    assert (c.towers, c.width, c.depth, c.projection, c.norm_epsilon, c.image_norm) == (2, 12, 2, 6, 1e-5, True)
    assert c.pixel_mean == (0.48145466, 0.4578275, 0.40821073)
    assert c.pixel_deviation == (0.26862954, 0.26130258, 0.27577711)
    assert c.text == TextConfig(8, 3, 2, 2.0, activation="gelu", causal=True, pooling="end")
    c = convert("siglip", weights("siglip")).model_config
    assert (c.pooling, c.projection, c.norm_epsilon, c.image_norm) == ("attention", 12, 1e-6, False)
    assert c.pixel_mean == c.pixel_deviation == (0.5, 0.5, 0.5)
    assert c.text == TextConfig(12, 3, 2, 28 / 12, activation="gelu_tanh", pooling="last", projection_bias=True)


# ---- the published sizes

BASE = {"D": 768, "F": 3072, "depth": 12}
TEXT_512 = {"D": 512, "F": 2048, "depth": 12, "V": 49408, "L": 77, "E": 512}
TEXT_768 = {"D": 768, "F": 3072, "depth": 12, "V": 49408, "L": 77, "E": 768}
PUBLISHED = {  # module, sizes of images and texts, image size, all parameters as the hub counts them
    "clip-vit-base-patch32": (clip, {**BASE, "P": 32, "N": 50, "E": 512}, TEXT_512, 224, 151_277_313),
    "clip-vit-base-patch16": (clip, {**BASE, "P": 16, "N": 197, "E": 512}, TEXT_512, 224, 149_620_737),
    "clip-vit-large-patch14": (
        clip, {"D": 1024, "F": 4096, "depth": 24, "P": 14, "N": 257, "E": 768}, TEXT_768, 224, 427_616_513,
    ),
    "siglip-base-patch16-224": (
        siglip, {**BASE, "P": 16, "N": 196}, {**TEXT_768, "V": 32000, "L": 64}, 224, 203_155_970,
    ),
    "siglip-base-patch16-256": (
        siglip, {**BASE, "P": 16, "N": 256}, {**TEXT_768, "V": 32000, "L": 64}, 256, 203_202_050,
    ),
    "siglip-base-patch16-384": (
        siglip, {**BASE, "P": 16, "N": 576}, {**TEXT_768, "V": 32000, "L": 64}, 384, 203_447_810,
    ),
    "siglip2-base-patch16-224": (
        siglip, {**BASE, "P": 16, "N": 196}, {**TEXT_768, "V": 256000, "L": 64}, 224, 375_187_970,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name):
    """Shapes alone; nothing is allocated."""
    module, image, text, side, count = PUBLISHED[name]
    namings = module.TOWERS["transformers"]
    of_image, of_text = named_shapes(namings.image, image), named_shapes(namings.text, text)
    assert sum(map(math.prod, [*of_image.values(), *of_text.values()])) == count
    assert of_image["encoder.layers.11.self_attn.k_proj.weight"] == (768, 768) or image["D"] != 768
    size, heads = {"image_size": (side, side), "stride": image["P"]}, {512: 8, 768: 12, 1024: 16}
    pooling = {"pooling": "attention", "projection": 768} if module is siglip else {"projection": text["E"]}
    model_config = IVTConfig(
        **size, **pooling, patch_size=image["P"], width=image["D"], depth=image["depth"], num_heads=heads[image["D"]],
        vocab_size=text["V"], max_text_length=text["L"], towers=2, image_norm=module is clip,
        text=TextConfig(width=text["D"], num_heads=heads[text["D"]], projection_bias=module is siglip),
    )  # fmt: skip
    ours = parameter_shapes(model_config)
    without = {"image_embedding/bias"} if module is clip else set()  # CLIP's patches have no bias
    assert ours.keys() - without == {rule.ours for naming in namings[:2] for rule in naming.rules}
    assert sum(math.prod(shape) for path, shape in ours.items() if path not in without) == count


def test_the_units_of_the_mlps_are_those_of_the_tensors():
    """In floating point, 976 / 448 * 448 is below 976."""
    sizes, namings = {"D": 448, "F": 976, "depth": 1}, siglip.TOWERS["transformers"]
    image = named_shapes(namings.image, {**sizes, "P": 5, "N": 16})
    text = named_shapes(namings.text, {**sizes, "V": 33, "L": 9, "E": 448})
    names = {("" if name.startswith("logit") else "vision_model.") + name: shape for name, shape in image.items()}
    names |= {f"text_model.{name}": shape for name, shape in text.items()}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in names.items()}
    made = convert("siglip", tensors, width=448, num_heads=7, text=TextConfig(width=448, num_heads=7))
    shapes = {path: value.shape for path, value in flatten_dict(made.params, sep="/").items()}
    assert shapes == parameter_shapes(made.model_config)
    assert shapes["text_blocks/mlp/fc1/kernel"] == (1, 448, 976)


def documented():
    """Name of the weights -> flags, from the table of docs/weights.md."""
    text = (Path(__file__).parent.parent.parent / "docs/weights.md").read_text()
    rows = re.findall(r"^\| `([\w/.-]+)` \| `:(clip|siglip)` \| (.*) \|$", text, re.MULTILINE)
    return {name.partition("/")[2]: (start, re.findall(r"`([^`]+)`", flags)) for name, start, flags in rows}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_documented_flags_fit_the_published_sizes(name):
    """The recipe with the flags can start from a model of the published sizes."""
    _, image, text, side, _ = PUBLISHED[name]
    start, flags = documented()[name]
    given = read_config(f"configs/cuhk.py:{start}", [f"--config.{flag}" for flag in flags])
    check_config(given)
    new, heads = IVTConfig.from_config(given.model), {512: 8, 768: 12, 1024: 16}
    old = dataclasses.replace(
        IVTConfig.from_config(cuhk.get_config(start).model), image_size=(side, side), stride=image["P"],
        patch_size=image["P"], width=image["D"], depth=image["depth"], num_heads=heads[image["D"]],
        vocab_size=text["V"], max_text_length=text["L"], projection=text["E"],
        text=dataclasses.replace(new.text, width=text["D"], num_heads=heads[text["D"]], depth=text["depth"]),
    )  # fmt: skip
    actions = choose_actions("weights", parameter_shapes(old), old, new)
    assert {path for path, action in actions.items() if action != "loaded"} <= {"image_embedding/pos_embed"}


# ---- faults


def changed(kind, **changes):
    tensors = {**weights(kind), **changes}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


FAULTS = [
    ("clip", {"logit_scale": None}, {}, 'clip: tensor "logit_scale" is missing'),
    ("clip", {"text_model.final_layer_norm.bias": None}, {}, 'clip: tensor "final_layer_norm.bias" is missing'),
    ("clip", {"text_model.extra": np.ones(3)}, {}, 'clip: unexpected tensor "text_model.extra" of shape (3,)'),
    ("clip", {"text_projection.weight": np.ones((5, 8))}, {},
     "clip: images are projected to 6 numbers, texts to 5; name a file of one model"),
    ("clip", {}, {"width": 16},
     "clip: a tower is 12 wide; set --config.model.width=12 and with it --config.model.num_heads, a divisor"),
    ("clip", {}, {"num_heads": 5}, "clip: a tower is 12 wide; set --config.model.width=12 and with it "),
    ("clip", {}, {"text": TextConfig(width=512)}, "clip: a tower is 8 wide; set --config.model.text.width=8 and "),
    ("clip", {}, {"image_size": (4, 20)}, "clip: patches of 5 pixels do not fit the image size (4, 20)"),
    ("siglip", {"text_model.head.weight": np.ones((9, 12)), "text_model.head.bias": np.ones(9)}, {},
     "siglip: embeddings of images have 12 numbers, of texts 9; name a file of one model"),
    ("siglip", {"vision_model.embeddings.position_embedding.weight": np.ones((17, 12))}, {},
     "siglip: position embedding of length 17; expected a square grid"),
    ("siglip", {"vision_model.embeddings.patch_embedding.weight": np.ones((12, 75))}, {},  # any resolution
     'siglip: tensor "vision_model.embeddings.patch_embedding.weight" has shape (12, 75), expected (12, 3, '),
    ("siglip", {"vision_model.embeddings.patch_embedding.weight": None}, {},
     "siglip is no SigLIP in the naming of transformers: it has logit_bias, "),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "sizes", "message"), FAULTS)
def test_a_fault_is_one_line_that_names_file_and_tensor(kind, changes, sizes, message):
    with pytest.raises(UserError) as error:
        convert(kind, changed(kind, **changes), **sizes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_clip_is_no_siglip():
    with pytest.raises(UserError, match=r'siglip: tensor "embeddings.patch_embedding.bias" is missing'):
        convert("siglip", weights("clip"))
