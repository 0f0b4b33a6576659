"""Which dtypes a tensor may have, in every naming."""

import ml_dtypes
import numpy as np
import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.conversion import bert, clip, release, vit
from ivt_jax.conversion.model import convert_export
from ivt_jax.conversion.tensors import TensorUse, read, shapes, table

NAMINGS = {
    "release": release.NAMING, "bert": bert.NAMING,
    **{f"vit, {name}": naming for name, naming in vit.NAMINGS.items()},
    **{f"clip, {name}": naming for name, naming in clip.NAMINGS.items()},
}  # fmt: skip
SIZES = {"D": 8, "F": 12, "H": 2, "E": 4, "P": 4, "N": 10, "V": 30, "L": 14, "depth": 2}


def zeros(naming):
    """Returns the tensors of a file in the naming, zeros in float32."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes(naming, SIZES).items()}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool", "complex64"])
@pytest.mark.parametrize("name", NAMINGS)
def test_a_weight_of_another_dtype_is_refused(name, dtype):
    tensors = zeros(NAMINGS[name])
    read(NAMINGS[name], tensors, "weights.bin", {})
    for bad in (next(iter(tensors)), list(tensors)[-1]):
        with pytest.raises(UserError) as error:
            read(NAMINGS[name], tensors | {bad: tensors[bad].astype(dtype)}, "weights.bin", {})
        assert str(error.value) == (
            f'weights.bin: tensor "{bad}" has dtype {dtype}; weights must be float16, bfloat16, float32 or float64: '
            "fetch the weights as they were before they were quantised or converted"
        )


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_a_parameter_of_our_own_of_another_dtype_is_refused(model, params, dtype):
    tensors = {path.replace("/", "."): value for path, value in params.items()}
    convert_export(tensors, "model.safetensors", model)
    with pytest.raises(UserError, match=f'tensor "blocks.norm.bias" has dtype {dtype}; weights must be'):
        convert_export(tensors | {"blocks.norm.bias": np.ones(12, dtype)}, "model.safetensors", model)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("name", NAMINGS)
def test_floating_point_weights_are_taken(name, dtype):
    tensors = {key: value.astype(dtype) for key, value in zeros(NAMINGS[name]).items()}
    read(NAMINGS[name], tensors, "weights.bin", {})


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("release", "encoder_vl.embeddings.position_ids"),
        ("bert", "bert.embeddings.position_ids"),
        ("clip, openai", "context_length"),
        ("clip, transformers", "vision_model.embeddings.position_ids"),
    ],
)
def test_indices_stay_ignored(name, index):
    tensors = zeros(NAMINGS[name]) | {index: np.arange(14)[None]}
    uses = read(NAMINGS[name], tensors, "weights.bin", {}).uses
    assert [(use.name, use.shape) for use in uses if use.action == "ignored"] == [(index, (1, 14))]


def test_empty_weights_are_refused():
    naming = vit.NAMINGS["timm"]
    tensors = {name: value[..., :0] for name, value in zeros(naming).items()}
    with pytest.raises(UserError, match=r'weights.bin: tensor "cls_token" is empty, of shape \(1, 1, 0\); fetch'):
        read(naming, tensors, "weights.bin", {})


def test_blocks_that_differ_in_their_number_share_a_line_other_numbers_stay():
    names = [f"blocks.{block}.experts.{expert}.bias" for block in range(3) for expert in range(2)]
    lines = table(TensorUse("ignored", name, (4,), "not used") for name in names).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["ignored", "3", f"blocks.*.experts.{expert}.bias", "4", "not", "used"] for expert in range(2)
    ]


def test_a_file_in_no_known_naming_is_described_by_its_first_three_tensors():
    source = vit.Source({name: np.ones(1) for name in "dbeca"}, "weights")
    with pytest.raises(UserError, match=r"it has a, b, c, \.\.\.; "):
        vit.naming_of(source)
