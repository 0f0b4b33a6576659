"""CLIP's image tower in both namings, against CLIP written out in float64."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.clip import convert_clip
from ivt_jax.conversion.tensors import table
from ivt_jax.conversion.vit import Source
from ivt_jax.encoding.pixels import normalise
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ivt import IVT
from tests.conversion.conftest import HEADS, PATCH, embed_patches, norm, run_blocks, without_none

NAMINGS = ("openai", "transformers_clip")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)


@pytest.fixture
def convert(request, bert, model):
    """convert(naming, changes of CLIP's tensors, activation, changes of the model); None takes a tensor away."""

    def run(naming, changed=(), activation="quick_gelu", **changes):
        source = Source(without_none({**request.getfixturevalue(naming), **dict(changed)}), "clip")
        wanted = IVTConfig(**{"image_size": (12, 12), "stride": PATCH, "num_heads": HEADS, **changes})
        return convert_clip(source, Source(bert, "bert"), wanted, activation, "bilinear", 3)

    return run


def features(w, pixels, epsilon=1e-5):
    """ln_post of [CLS]: CLIP's image features before its projection. pixels (12, 12, 3) from 0 to 255."""
    w = {name.replace("in_proj_", "in_proj."): value.astype(np.float64) for name, value in w.items()}
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    patches = embed_patches((pixels / 255 - mean) / deviation, w["visual.conv1.weight"])
    names = ("ln_1", "attn.in_proj", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    names = [f"visual.transformer.resblocks.{{}}.{name}" for name in names]
    x = np.concatenate([w["visual.class_embedding"][None], patches]) + w["visual.positional_embedding"]
    x = run_blocks(norm(x, w, "visual.ln_pre", epsilon), w, names, lambda x: x / (1 + np.exp(-1.702 * x)), epsilon)
    return norm(x[0], w, "visual.ln_post", epsilon)


def cls_of(made, pixels):
    return IVT(made.model_config).apply(
        {"params": made.params}, normalise(pixels, made.model_config)[None], method="encode_image"
    )[0, 0]


@pytest.mark.parametrize("naming", NAMINGS)
def test_the_tower_computes_clips_features(convert, openai, naming):
    expected = features(openai, PIXELS)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(cls_of(convert(naming), PIXELS), expected, rtol=0, atol=1e-5 * largest)
    assert np.abs(features(openai, PIXELS, 1e-6) - expected).max() > 1e-4 * largest  # the epsilon is not idle


def test_a_grey_image_is_no_zero_to_clip(convert, openai):
    """Its mean is not 0.5."""
    grey = np.full((12, 12, 3), 127.5)
    expected = features(openai, grey)
    np.testing.assert_allclose(cls_of(convert("openai"), grey), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_other_gelu_is_another_tower(convert, openai):
    expected = features(openai, PIXELS)
    made = convert("openai", activation="gelu")
    assert made.model_config.image_activation == "gelu"
    assert np.abs(cls_of(made, PIXELS) - expected).max() > 1e-3 * np.abs(expected).max()


def test_both_namings_give_the_same_parameters_and_bert_the_text_side(convert, params):
    first, second = (flatten_dict(convert(naming).params, sep="/") for naming in NAMINGS)
    assert first.keys() == second.keys() == {*params, "image_embedding/norm/scale", "image_embedding/norm/bias"}
    for path, value in first.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, second[path], err_msg=path)
        if path.startswith(("text_embedding/", "blocks/mlp_txt/")):
            np.testing.assert_array_equal(value, params[path], err_msg=path)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_tensor_is_accounted_for(request, convert, naming, bert, params):
    made = convert(naming, image_size=(24, 12))
    tensors = request.getfixturevalue(naming)
    assert sorted(use.name for use in made.uses if use.name) == sorted([*tensors, *bert])
    ignored = {use.name for use in made.uses if use.action == "ignored"}
    assert ignored - bert.keys() == {name for name in tensors if not name.startswith("vis")} | (
        {"visual.proj"} & tensors.keys()
    ) | ({"visual_projection.weight", "vision_model.embeddings.position_ids"} & tensors.keys())
    initialised = {use.note.split(",")[0] for use in made.uses if use.action == "initialised"}
    heads = {path for path in params if path.startswith(("word_head/", "patch_head/"))}
    missing = {"type_embed", "mask_token", "bias"}
    assert initialised == heads | {f"image_embedding/{name}" for name in missing}
    text = table(made.uses)
    assert "image_embedding/pos_embed, 3x3 -> 6x3 patches, bilinear" in text and "of CLIP's text tower" in text
    assert "image_embedding/bias, zeros: CLIP has none" in text
    c = made.model_config
    assert (c.image_norm, c.image_activation, c.norm_epsilon) == (True, "quick_gelu", 1e-5)
    assert c.pixel_mean == (0.48145466, 0.4578275, 0.40821073)
    assert c.pixel_deviation == (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("naming, prefix", [("openai", "module."), ("transformers_clip", "")])
def test_other_prefixes_are_known(request, convert, naming, prefix):
    """DataParallel's, of open_clip's checkpoints; transformers 5 writes CLIPVisionModel without any."""
    tensors = request.getfixturevalue(naming)
    renamed = {prefix + name.removeprefix("vision_model."): value for name, value in tensors.items()}
    made = convert(naming, {**dict.fromkeys(tensors), **renamed})
    expected = flatten_dict(convert(naming).params, sep="/")
    for path, value in flatten_dict(made.params, sep="/").items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


ONE = np.ones(1, np.float32)
FAULTS = [
    ("openai", {"visual.ln_pre.bias": None}, 'clip: tensor "visual.ln_pre.bias" is missing'),
    ("openai", {"visual.attnpool.bias": ONE}, 'clip: unexpected tensor "visual.attnpool.bias" of shape (1,)'),
    ("openai", {"visual.class_embedding": np.ones(9)},
     'clip: tensor "visual.class_embedding" has shape (9,), expected (12)'),
    ("openai", {"visual.transformer.resblocks.1.attn.in_proj_weight": np.ones((12, 36))},
     'clip: tensor "visual.transformer.resblocks.1.attn.in_proj_weight" has shape (12, 36), expected (36, 12)'),
    ("openai", {"visual.positional_embedding": np.ones((9, 12))},
     "clip: position embedding of length 9; expected [CLS] and a square grid"),
    ("transformers_clip", {"vision_model.encoder.layers.0.self_attn.k_proj.bias": np.ones(9)},
     'clip: tensor "vision_model.encoder.layers.0.self_attn.k_proj.bias" has shape (9,), expected (12)'),
    ("transformers_clip", {"vision_model.pre_layrnorm.weight": None}, 'clip: tensor "pre_layrnorm.weight" is missing'),
    ("timm", {}, "clip is no CLIP in the naming of openai, transformers: it has blocks.0.attn.proj.bias, "),
    ("openai", {f"visual.transformer.resblocks.1.{name}{kind}": None for kind in ("weight", "bias")
                for name in ("ln_1.", "ln_2.", "attn.in_proj_", "attn.out_proj.", "mlp.c_fc.", "mlp.c_proj.")},
     "clip is 1 deep, bert 2; name a pair of the same size"),
]  # fmt: skip


@pytest.mark.parametrize(("naming", "changes", "message"), FAULTS)
def test_a_fault_is_one_line_that_names_file_and_tensor(convert, naming, changes, message):
    with pytest.raises(UserError) as error:
        convert(naming, changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
