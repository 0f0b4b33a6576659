"""The initial tower from a ViT in each naming and BERT, against parameters that were laid out by hand."""

import math
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.tensors import table
from ivt_jax.conversion.vit import Source, convert_vit, naming_of
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ivt import IVT
from tests.conversion.conftest import embed_patches, norm, run_blocks, without_none

NAMINGS = ("timm", "transformers", "google")
DRAWN = ("image_embedding/type_embed", "image_embedding/mask_token", "word_head/", "patch_head/")


@pytest.fixture
def convert(request, bert, model):
    """convert(naming, changes of the ViT's tensors, of BERT's, of the model); None takes a tensor away."""

    def run(naming, vit_changes=(), text_changes=(), method="bilinear", seed=3, **changes):
        vit = Source(without_none({**request.getfixturevalue(naming), **dict(vit_changes)}), "vit")
        text = Source(without_none({**bert, **dict(text_changes)}), "bert")
        sizes = {"image_size": model.image_size, "stride": model.stride, "num_heads": model.num_heads}
        return convert_vit(vit, text, IVTConfig(**{**sizes, **changes}), method, seed)

    return run


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_the_parameters_bit_for_bit(convert, params, model, naming):
    made = convert(naming)
    flat = flatten_dict(made.params, sep="/")
    assert made.model_config == model and flat.keys() == params.keys()
    for path in flat:
        if not path.startswith(DRAWN):
            assert flat[path].dtype == np.float32
            np.testing.assert_array_equal(flat[path], params[path], err_msg=path)


def test_the_rest_is_what_the_model_starts_with(convert, model):
    made, again, other = convert("timm"), convert("timm"), convert("timm", seed=4)
    expected = flatten_dict(jax.jit(lambda: IVT(model).init(jax.random.key(3))["params"])(), sep="/")
    flats = [flatten_dict(x.params, sep="/") for x in (made, again, other)]
    for path in (path for path in expected if path.startswith(DRAWN)):
        np.testing.assert_allclose(flats[0][path], expected[path], rtol=1e-6, err_msg=path)
        np.testing.assert_array_equal(flats[0][path], flats[1][path])
    assert not np.array_equal(flats[0][DRAWN[0]], flats[2][DRAWN[0]])


def test_a_tower_of_one_block_and_an_image_of_one_row_of_patches(convert, timm, bert, params, model):
    upper = {name: None for name in (*timm, *bert) if re.search(r"(blocks|layer)\.[1-9]", name)}
    made = convert("timm", upper, upper, image_size=(model.patch_size, model.image_size[1]))
    columns = model.grid[1]
    assert made.model_config.depth == 1 and made.model_config.grid == (1, columns)
    flat = flatten_dict(made.params, sep="/")
    for path in ("blocks/attn/qkv/kernel", "blocks/mlp_vis/fc1/kernel", "blocks/mlp_txt/fc1/kernel"):
        np.testing.assert_array_equal(flat[path], params[path][:1], err_msg=path)
    # Half-pixel centres: of three rows the middle one, of two rows their mean.
    rows = params["image_embedding/pos_embed"][0, 1:].reshape(*model.grid, -1)
    middle = rows[(model.grid[0] - 1) // 2 : model.grid[0] // 2 + 1].mean(0)
    np.testing.assert_allclose(flat["image_embedding/pos_embed"][0, 1:], middle, rtol=1e-6)


def test_a_prefix_may_lack(convert, transformers, params):
    bare = {name.removeprefix("vit."): value for name, value in transformers.items()}
    made = convert("transformers", {**dict.fromkeys(transformers), **bare})
    np.testing.assert_array_equal(made.params["blocks"]["attn"]["qkv"]["kernel"], params["blocks/attn/qkv/kernel"])


def test_the_names_that_transformers_5_has_in_memory(convert, transformers, params):
    def in_memory(name):
        for part, short in (("query", "q"), ("key", "k"), ("value", "v")):
            name = name.replace(f"attention.attention.{part}", f"attention.{short}_proj")
        name = name.replace("attention.output.dense", "attention.o_proj").replace("encoder.layer.", "layers.")
        return name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")

    renamed = {in_memory(name): value for name, value in transformers.items()}
    assert {"vit.layers.1.attention.o_proj.bias", "vit.layers.0.mlp.fc2.weight"} < renamed.keys()
    made = convert("transformers", {**dict.fromkeys(transformers), **renamed})
    blocks = flatten_dict(made.params["blocks"], sep="/")
    for path in blocks:
        np.testing.assert_array_equal(blocks[path], params[f"blocks/{path}"], err_msg=path)


def test_bert_without_a_prefix_and_with_new_names(convert, bert, params):
    def modern(name):
        return name.removeprefix("bert.").replace("gamma", "weight").replace("beta", "bias")

    made = convert("timm", (), {**dict.fromkeys(bert), **{modern(name): value for name, value in bert.items()}})
    np.testing.assert_array_equal(made.params["text_embedding"]["scale"], params["text_embedding/scale"])


def test_the_tower_computes_what_the_vit_does(convert, timm):
    """Against a ViT written out in float64 from timm's tensors."""
    made = convert("timm")
    made.params["image_embedding"]["type_embed"] = np.zeros_like(made.params["image_embedding"]["type_embed"])
    image = np.random.default_rng(0).normal(size=(12, 12, 3))
    ours = IVT(made.model_config).apply({"params": made.params}, image[None].astype(np.float32), method="encode_image")[
        0
    ]
    expected = vit_tokens({name: value.astype(np.float64) for name, value in timm.items()}, image)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def vit_tokens(w, image):
    erf = np.vectorize(math.erf)
    patches = embed_patches(image, w["patch_embed.proj.weight"]) + w["patch_embed.proj.bias"]
    names = [f"blocks.{{}}.{name}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    x = np.concatenate([w["cls_token"][0], patches]) + w["pos_embed"][0]
    return norm(run_blocks(x, w, names, lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, 1e-6), w, "norm", 1e-6)


@pytest.mark.parametrize("naming", NAMINGS)
def test_positions_are_resized_to_another_image_size(convert, params, naming):
    made = convert(naming, image_size=(24, 10), stride=3)  # 7 x 3 patches
    positions = made.params["image_embedding"]["pos_embed"]
    source = params["image_embedding/pos_embed"]
    np.testing.assert_array_equal(positions[:, 0], source[:, 0])
    grid = source[0, 1:].reshape(3, 3, -1)
    expected = jax.image.resize(grid, (7, 3, grid.shape[-1]), "linear", antialias=False)
    np.testing.assert_allclose(positions[0, 1:].reshape(7, 3, -1), expected, atol=1e-6)
    assert made.model_config.grid == (7, 3) and made.params["image_embedding"]["type_embed"].shape == (1, 22, 12)


def test_the_account_has_every_tensor_and_every_parameter(convert, timm, bert, params):
    uses = convert("timm", image_size=(24, 12), method="bicubic").uses
    assert sorted(use.name for use in uses if use.name) == sorted([*timm, *bert])
    actions = {action: {use.name for use in uses if use.action == action} for action in ("resized", "ignored")}
    assert actions["resized"] == {"pos_embed"}
    assert {"head.weight", "bert.pooler.dense.bias", "cls.predictions.bias"} < actions["ignored"]
    assert "bert.encoder.layer.1.attention.output.LayerNorm.gamma" in actions["ignored"]
    initialised = {use.note.split(",")[0] for use in uses if use.action == "initialised"}
    assert initialised == {path for path in params if path.startswith(DRAWN)}
    text = table(uses)
    assert "3x3 -> 6x3 patches, bicubic" in text
    line = next(line for line in text.splitlines() if "blocks.*.attn.qkv.weight" in line)
    assert line.split() == ["used", "2", "blocks.*.attn.qkv.weight", "36x12", "blocks/attn/qkv/kernel"]


ONE = np.ones(1, np.float32)
FAULTS = [
    ("timm", {"blocks.1.mlp.fc2.bias": None}, {}, 'vit: tensor "blocks.1.mlp.fc2.bias" is missing'),
    ("timm", {"dist_token": ONE}, {}, 'vit: unexpected tensor "dist_token" of shape (1,)'),
    ("timm", {"blocks.7.norm1.bias": ONE}, {}, 'vit: tensor "blocks.2.norm1.weight" is missing'),
    ("timm", {"cls_token": np.ones((1, 1, 9))}, {}, 'vit: tensor "cls_token" has shape (1, 1, 9), expected (1, 1, 12)'),
    ("timm", {"blocks.0.attn.qkv.weight": np.ones((12, 36))}, {},
     'vit: tensor "blocks.0.attn.qkv.weight" has shape (12, 36), expected (36, 12)'),
    ("timm", {"patch_embed.proj.weight": np.ones((12, 48))}, {},
     'vit: tensor "patch_embed.proj.weight" has shape (12, 48), expected (12, 3, P, P)'),
    ("timm", {"pos_embed": np.ones((1, 9, 12))}, {},
     "vit: position embedding of length 9; expected [CLS] and a square grid"),
    ("timm", {"pos_embed": np.ones((1, 1, 12))}, {},
     "vit: position embedding of length 1; expected [CLS] and a square grid"),
    ("google", {"cls": None}, {}, 'vit: tensor "cls" is missing'),
    ("transformers", {"pooler.dense.bias": ONE, "vit.pooler.dense.bias": ONE}, {},
     'vit: tensors "pooler.dense.bias" and "vit.pooler.dense.bias" are both "pooler.dense.bias"; keep one of them'),
    ("bert", {}, {}, "vit is no ViT in the naming of timm, google, transformers: it has bert.embeddings."),
    ("timm", {}, {"bert.encoder.layer.0.crossattention.bias": ONE},
     'bert: unexpected tensor "bert.encoder.layer.0.crossattention.bias" of shape (1,)'),
    ("timm", {}, {"bert.embeddings.LayerNorm.gamma": None}, 'bert: tensor "embeddings.LayerNorm.weight" is missing'),
]  # fmt: skip


@pytest.mark.parametrize(("naming", "vit", "text", "message"), FAULTS)
def test_a_fault_is_one_line_that_names_file_and_tensor(convert, naming, vit, text, message):
    with pytest.raises(UserError) as error:
        convert(naming, vit, text)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_tower_without_blocks_lacks_its_first_block(convert, timm, bert):
    blocks = {name: None for name in (*timm, *bert) if re.search(r"(blocks|layer)\.\d", name)}
    with pytest.raises(UserError, match=r'^vit: tensor "blocks.0.norm1.weight" is missing$'):
        convert("timm", blocks, blocks)


def test_patches_larger_than_the_image_are_refused(convert):
    with pytest.raises(UserError, match=r"^vit: patches of 4 pixels do not fit the image size \(12, 2\)$"):
        convert("timm", image_size=(12, 2))


def test_googles_heads_must_be_the_configs(convert):
    with pytest.raises(UserError, match=r"query/kernel\" has shape \(12, 3, 4\), expected \(12, 2, 4\)$"):
        convert("google", num_heads=2)


def test_a_vit_and_a_bert_of_different_depth_do_not_go_together(convert, bert):
    shallow = {name: None for name in bert if ".layer.1." in name}
    with pytest.raises(UserError, match=r"^vit is 2 deep, bert 1; name a pair of the same size$"):
        convert("timm", (), shallow)


@pytest.mark.parametrize("naming", NAMINGS)
def test_namings_are_told_by_content(request, naming):
    assert naming_of(Source(request.getfixturevalue(naming), "file")) == naming
