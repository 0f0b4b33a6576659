"""The release's names and back; that the tower then computes what the release does is in tests/test_parity.py."""

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from ivt_jax.common.errors import UserError
from ivt_jax.conversion import params_from_release, release_from_params
from ivt_jax.conversion.release import convert_release
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from tests.conversion.conftest import without_none

SIZES = {"num_heads": 4, "image_size": (64, 32), "stride": 12}


def assert_equal(tensors, others):
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype
        np.testing.assert_array_equal(tensor, others[name], err_msg=name)


def test_there_and_back_is_the_identity(release):
    _, params = params_from_release(release, **SIZES)
    assert_equal(release_from_params(params), release)


def test_with_module_and_with_unused_heads_it_is_the_same(release):
    heads = {"classifier_img.weight": np.ones((9, 48)), "bottleneck_img.running_mean": np.ones(48), "temp": np.ones(())}
    wrapped = {f"module.{name}": tensor for name, tensor in {**release, **heads}.items()}
    assert_equal(release_from_params(params_from_release(wrapped, **SIZES)[1]), release)


def test_sizes_are_read_off_the_tensors(release):
    config, _ = params_from_release(release, **SIZES)
    sizes = config.width, config.depth, config.patch_size, config.mlp_ratio, config.vocab_size, config.max_text_length
    assert sizes == (48, 3, 16, 4.0, 120, 32)
    assert (config.num_heads, config.image_size, config.stride) == (4, (64, 32), 12)


def test_the_units_of_the_mlps_are_those_of_the_tensors():
    """In floating point, 976 / 448 * 448 is below 976."""
    sizes = {"image_size": (8, 8), "stride": 4, "num_heads": 7}
    config = IVTConfig(**sizes, patch_size=4, width=448, depth=1, mlp_ratio=976.5 / 448, vocab_size=5)
    params = {path: np.zeros(shape, np.float32) for path, shape in parameter_shapes(config).items()}
    made, _ = params_from_release(release_from_params(unflatten_dict(params, sep="/")), **sizes)
    assert made.mlp_ratio == 976 / 448 and parameter_shapes(made) == parameter_shapes(config)


FAULTS = [
    ({"encoder_vl.blocks.2.mlp_txt.fc1.bias": None}, {}, '"encoder_vl.blocks.2.mlp_txt.fc1.bias" is missing'),
    ({"encoder_vl.fusion.weight": np.ones(3)}, {}, 'unexpected tensor "encoder_vl.fusion.weight" of shape (3,)'),
    ({"encoder_vl.norm.bias": np.ones(3)}, {}, '"encoder_vl.norm.bias" has shape (3,), expected (48)'),
    ({}, {"stride": 16}, "image_embedding/pos_embed has shape (1, 11, 48), a model of 64x32 pixels at stride 16 (4x2 "),
    ({}, {"num_heads": 5}, "the width 48 is not a multiple of the 5 heads"),
    ({}, {"image_size": (64, 8)}, "patches of 16 pixels do not fit the image size (64, 8)"),
]


@pytest.mark.parametrize(("changes", "sizes", "message"), FAULTS)
def test_a_misfit_is_one_line(release, changes, sizes, message):
    with pytest.raises(UserError) as error:
        params_from_release(without_none({**release, **changes}), **{**SIZES, **sizes})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_the_release_lacks_is_drawn_from_seed_0(release):
    _, params = params_from_release(release, **SIZES)
    first, other = (convert_release(release, "file", IVTConfig(**SIZES), seed).params for seed in (0, 1))
    for path in (("patch_head", "kernel"), ("word_head", "kernel"), ("image_embedding", "mask_token")):
        ours, same, another = (tree[path[0]][path[1]] for tree in (params, first, other))
        np.testing.assert_array_equal(ours, same)
        assert np.any(ours) and not np.array_equal(ours, another)
