"""The sizes that a model's config works out."""

import pytest

from ivt_jax.models import ivt
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig, TextConfig


def test_a_ratio_of_units_and_width_gives_back_the_units():
    for width in range(64, 2049, 64):
        for units in range(width, 6 * width + 1, 16):
            config = IVTConfig(width=width, mlp_ratio=units / width)
            assert config.hidden == units, (width, units)


@pytest.mark.parametrize(("width", "ratio", "units"), [(768, 4.0, 3072), (768, 2.7, 2073), (10, 0.19, 1)])
def test_a_part_of_a_unit_is_cut_off(width, ratio, units):
    assert IVTConfig(width=width, mlp_ratio=ratio).hidden == units


def test_the_mlps_of_every_tower_have_these_units():
    sizes = {"width": 448, "depth": 1, "num_heads": 7, "mlp_ratio": 976 / 448}
    one = parameter_shapes(IVTConfig(**sizes))
    text = TextConfig(width=704, depth=1, num_heads=11, mlp_ratio=1568 / 704)
    two = parameter_shapes(IVTConfig(**sizes, towers=2, projection=8, pooling="attention", text=text))
    assert one["blocks/mlp_vis/fc1/kernel"] == one["blocks/mlp_txt/fc1/kernel"] == (1, 448, 976)
    assert two["image_blocks/mlp/fc2/kernel"] == (1, 976, 448) and two["image_head/mlp/fc1/kernel"] == (448, 976)
    assert two["text_blocks/mlp/fc1/kernel"] == (1, 704, 1568)


def test_the_config_is_found_beside_the_model_too():
    """Published: `from ivt_jax.models.ivt import IVT, IVTConfig`."""
    assert ivt.IVTConfig is IVTConfig
