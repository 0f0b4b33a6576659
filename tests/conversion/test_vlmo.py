"""VLMo's names and sizes; that the tower then computes what VLMo does is in tests/test_vlmo.py."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.interpolate import RectBivariateSpline

from ivt_jax import convert
from ivt_jax.common.errors import UserError
from ivt_jax.conversion import params_from_vlmo
from ivt_jax.conversion.tensors import table
from ivt_jax.conversion.vlmo import convert_vlmo
from ivt_jax.models.config import IVTConfig
from ivt_jax.run import checkpoint
from tests.conversion.conftest import without_none

SIZES = {"num_heads": 4, "image_size": (64, 64), "stride": 16, "max_text_len_of_initckpt": 20}
TABLE = "relative_position_bias_table"
JOINT_ALONE = {
    "transformer.blocks.2.mlp_vl.fc1.weight": np.ones((192, 48)),
    "transformer.blocks.2.norm2_vl.bias": np.ones(48),
    "itc_vl_text_proj.fc.weight": np.ones((48, 48)),
    "logit_vl_scale": np.ones(()),
    "pooler.dense.weight": np.ones((48, 48)),
    "mlm_score.transform.dense.weight": np.ones((48, 48)),
    "itm_score.fc.bias": np.ones(2),
    "text_embeddings.position_ids": np.arange(12)[None],
    "relative_position_index": np.ones((17, 17), int),
}


@pytest.fixture(scope="module")
def vlmo():
    with np.load(Path(__file__).parent.parent / "data/vlmo_tiny.npz") as archive:
        return {name.removeprefix("weights/"): archive[name] for name in archive.files if name.startswith("weights/")}


def relative(params):
    return params["blocks"]["relative"]


def flatten(tree, path=""):
    if isinstance(tree, dict):
        return {k: v for name, part in tree.items() for k, v in flatten(part, f"{path}/{name}").items()}
    return {path[1:]: tree}


def test_sizes_and_options(vlmo):
    config, params = params_from_vlmo(vlmo, **SIZES)
    sizes = config.width, config.depth, config.patch_size, config.mlp_ratio, config.vocab_size, config.max_text_length
    assert sizes == (48, 3, 16, 4.0, 120, 20)
    assert (config.relative_positions, config.projection, config.norm_epsilon) == (True, 48, 1e-6)
    assert not params["image_embedding"]["pos_embed"].any() and not params["text_embedding"]["position"].any()
    assert all(value.dtype == np.float32 for value in flatten(params).values())


def test_tables_by_hand(vlmo):
    """Layer 1, head 2 is column 6; a grid of 4x4 has 7x7 offsets, a text of 20 tokens 37."""
    column = vlmo[TABLE][:, 6]
    _, params = params_from_vlmo(vlmo, **SIZES)
    tables = {name: value[1, 2] for name, value in relative(params).items()}
    assert tables["image"][3 + 1, 3 - 2] == column[(1 + 3) * 7 + (-2 + 3)]  # one row down, two columns left of the key
    np.testing.assert_array_equal(tables["image_cls"], column[49:52])
    np.testing.assert_array_equal(tables["cross"], column[52:54])
    assert tables["text"][18 + 5] == column[54 + 18 - 5]  # five words after the key
    np.testing.assert_array_equal(tables["text_cls"], column[91:94])


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.", "model.", "state_dict.module."])
def test_other_names_and_what_joint_passes_have_change_nothing(vlmo, prefix):
    _, expected = params_from_vlmo(vlmo, **SIZES)
    wrapped = {prefix + name: tensor for name, tensor in {**vlmo, **JOINT_ALONE}.items()}
    _, params = params_from_vlmo(wrapped, **SIZES)
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, flatten(expected)[path], err_msg=path)


@pytest.mark.parametrize("wrapper", ["state_dict", "module", "model"])
def test_files_of_pytorch(vlmo, tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    from ivt_jax.conversion.files import read_tensors

    tensors = {("module." if wrapper == "module" else "") + name: torch.tensor(x) for name, x in vlmo.items()}
    torch.save({wrapper: tensors, "epoch": 3}, tmp_path / "vlmo.pt")
    _, params = params_from_vlmo(read_tensors(tmp_path / "vlmo.pt"), **SIZES)
    np.testing.assert_array_equal(relative(params)["cross"], relative(params_from_vlmo(vlmo, **SIZES)[1])["cross"])


def test_the_table_of_uses_says_what_became_of_each(vlmo):
    config = IVTConfig(image_size=(96, 32), num_heads=4)
    shown = table(convert_vlmo({**vlmo, **JOINT_ALONE}, "file", config, 0, 20).uses)
    for line in (
        r"^used +3  transformer.blocks.\*.gamma_1 +48 +multiplied into blocks/attn/proj$",
        r"^used +3  transformer.blocks.\*.norm2_imag.bias +48 +folded into blocks/mlp_vis/fc1$",
        r"^used +1  token_type_embeddings.weight +2x48 +image_embedding/type_embed, and added to text_embedding/bias$",
        r"^resized +1  relative_position_bias_table +94x12 +blocks/relative, 4x4 -> 6x2 patches, by their distance in ",
        r"^ignored +1  transformer.blocks.\*.mlp_vl.fc1.weight +192x48 +of VLMo's joint passes alone$",
        r"^ignored +1  text_embeddings.position_embeddings.weight +12x48 +VLMo does not use it$",
        r"^initialised +1x13x48 +image_embedding/pos_embed, zeros: VLMo has none$",
    ):
        assert re.search(line, shown, re.M), (line, shown)


def test_absolute_positions_where_a_model_has_them(vlmo):
    positions = np.random.default_rng(0).normal(size=(1, 17, 48)).astype(np.float32)
    _, params = params_from_vlmo({**vlmo, "transformer.pos_embed": positions}, **SIZES)
    np.testing.assert_array_equal(params["image_embedding"]["pos_embed"], positions)
    _, params = params_from_vlmo({**vlmo, "transformer.pos_embed": positions}, **{**SIZES, "image_size": (96, 32)})
    assert params["image_embedding"]["pos_embed"].shape == (1, 13, 48)


FAULTS = [
    ({"transformer.blocks.2.norm2_text.bias": None}, {}, 'tensor "transformer.blocks.2.norm2_text.bias" is missing'),
    ({TABLE: None}, {}, f'tensor "{TABLE}" is missing'),
    ({"transformer.fusion.weight": np.ones(3)}, {}, 'unexpected tensor "transformer.fusion.weight" of shape (3,)'),
    ({"transformer.norm.bias": np.ones(3)}, {}, '"transformer.norm.bias" has shape (3,), expected (48)'),
    ({"logit_scale": np.ones(3)}, {}, '"logit_scale" has shape (3,), expected ()'),
    ({"transformer.norm.bias": np.ones(48, int)}, {}, '"transformer.norm.bias" has dtype int64'),
    ({}, {"num_heads": 3}, f'"{TABLE}" has 12 columns, 3 layers times 3 heads are 9; set --config.model.num_heads=4'),
    (
        {},
        {"max_text_len_of_initckpt": 196},
        "beside texts of 196 tokens; set --max_text_len_of_initckpt to that of its ",
    ),
    ({}, {"max_text_len_of_initckpt": -3}, f'"{TABLE}" has 94 rows, which fit no square grid of patches beside texts'),
    ({}, {"image_size": (64, 8)}, "patches of 16 pixels do not fit the image size (64, 8)"),
]


@pytest.mark.parametrize(("changes", "sizes", "message"), FAULTS)
def test_a_misfit_is_one_line(vlmo, changes, sizes, message):
    with pytest.raises(UserError) as error:
        params_from_vlmo(without_none({**vlmo, **changes}), **{**SIZES, **sizes})
    assert message in str(error.value) and "\n" not in str(error.value)


def with_published_table(vlmo, rng):
    """The tiny weights with the table of 14x14 patches and texts of 196 tokens."""
    return {**vlmo, TABLE: rng.standard_normal((1126, 12)).astype(np.float32)}


def geometric(half, farthest):
    """VLMo's points, found by another way: distances 1, 1 + q, 1 + q + q^2, ..., the last of them `farthest`."""
    coefficients = np.append(np.ones(half - 1), 1.0 - farthest)
    (factor,) = (root.real for root in np.roots(coefficients) if abs(root.imag) < 1e-9 and root.real > 0)
    distances = np.cumsum(factor ** np.arange(half))
    return np.concatenate([-distances[::-1], [0], distances])


@pytest.mark.parametrize(
    ("stride", "shape", "step"), [(16, (47, 15), 1.0), (12, (61, 19), 0.75)], ids=["side by side", "overlapping"]
)
def test_384x128_keeps_distances_in_pixels(vlmo, stride, shape, step):
    tensors = with_published_table(vlmo, np.random.default_rng(1))
    _, params = params_from_vlmo(tensors, num_heads=4, image_size=(384, 128), stride=stride)
    tables = relative(params)
    assert tables["image"].shape == (3, 4, *shape) and tables["text"].shape == (3, 4, 389)
    rows, columns = (step * np.arange(-(n // 2), n // 2 + 1) for n in shape)
    for layer, head in ((0, 0), (2, 1)):
        grid = tensors[TABLE][:729, layer * 4 + head].reshape(27, 27).astype(np.float64)
        curve = RectBivariateSpline(geometric(13, 23), np.arange(-13, 14), grid, kx=3, ky=3, s=0)
        # VLMo finds the factor to 1e-6, and the farthest point to 1e-4.
        np.testing.assert_allclose(tables["image"][layer, head], curve(rows, columns), atol=2e-3)
        if step == 1:  # the middle row is not stretched: the columns are the central ones, to the bit
            np.testing.assert_array_equal(tables["image"][layer, head, 23], grid[13, 6:21].astype(np.float32))


def test_224x224_is_left_as_it_is(vlmo):
    tensors = with_published_table(vlmo, np.random.default_rng(1))
    config, params = params_from_vlmo(tensors, num_heads=4, image_size=(224, 224), stride=16)
    expected = tensors[TABLE][:729].T.reshape(3, 4, 27, 27)
    np.testing.assert_array_equal(relative(params)["image"], expected)
    assert config.max_text_length == 196


# ---- the command


@pytest.fixture
def command(tmp_path, vlmo):
    from input_pipeline.tokenizer import SHIPPED

    count = len(SHIPPED.read_text().splitlines())
    words = np.random.default_rng(5).normal(size=(count, 48)).astype(np.float32)
    tensors = {**vlmo, "text_embeddings.word_embeddings.weight": words}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "vlmo.safetensors")
    return [
        "--source=vlmo", f"--weights={tmp_path}/vlmo.safetensors", f"--out={tmp_path}/out", "--config=configs/synth.py",
        "--max_text_len_of_initckpt=20", "--config.model.stride=16", "--config.model.width=48",
        "--config.model.num_heads=4", "--config.model.image_size=(64,32)", "--config.text.length.sentence=20",
        "--config.text.length.phrase=20",
        "--config.text.length.word=20",
    ]  # fmt: skip


def test_the_command_writes_a_folder_that_can_be_restored(tmp_path, command, capsys):
    assert convert.main(command) == 0
    assert "blocks/relative, 4x4 -> 4x2 patches" in capsys.readouterr().out
    config, params, _ = checkpoint.restore_params(tmp_path / "out")
    assert (config.model.relative_positions, config.model.projection, config.model.max_text_length) == (True, 48, 20)
    assert params["similarity"]["log_scale"].shape == () and relative(params)["image"].shape == (3, 4, 7, 3)


def test_without_a_config_the_grid_is_the_table_s(tmp_path, command, capsys):
    flags = [
        flag for flag in command if not flag.startswith(("--config=", "--config.model.image", "--config.model.st"))
    ]
    assert convert.main([*flags, "--config.text.tokenizer="]) == 0
    assert "image size: 64x64 at stride 16, as the model was trained; " in capsys.readouterr().out
    config, params, _ = checkpoint.restore_params(tmp_path / "out")
    assert (tuple(config.model.image_size), config.model.stride) == ((64, 64), 16)
    assert relative(params)["image"].shape == (3, 4, 7, 7)


def test_texts_beyond_the_tables_are_refused(tmp_path, command, capsys):
    assert convert.main([*command, "--config.text.length.sentence=21"]) == 2
    message = "text.length.sentence is 21; expected 3 to model.max_text_length 20 tokens"
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
