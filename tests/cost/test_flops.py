import dataclasses
import math

import jax
import numpy as np
import pytest

from configs import default
from ivt_jax.cost import flops
from ivt_jax.losses.heads import init_heads
from ivt_jax.models.build import build_model, parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ivt import IVT
from ivt_jax.training.objective import Objective
from tests.cost.conftest import tiny


def base(**changes):
    return {**default.get_config().model.to_dict(), **changes}


@pytest.mark.parametrize("stride, millions", [(16, 166.45), (12, 166.63)])
def test_the_tower_has_the_published_size(stride, millions):
    shapes = parameter_shapes(IVTConfig.from_config(base(stride=stride)))
    tower = sum(math.prod(shape) for path, shape in shapes.items() if not path.startswith(("word_head", "patch_head")))
    assert tower / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    "changes", [{}, {"stride": 8, "mlp_ratio": 3.0, "depth": 2, "vocab_size": 77}, {"image_norm": True}]
)
def test_parameters_are_those_of_the_model(changes):
    config = tiny(**changes)
    params = jax.jit(IVT(config).init)(jax.random.key(0))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    expected = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
    assert parameter_shapes(config) == expected


def test_tower_flops_by_hand():
    # 3 tokens of width 4, hidden 8, one block: qkv 2*3*4*12 = 288, scores 2*3*3*4 = 72, mix 72, proj 2*3*4*4 = 96,
    # MLP 2 * 2*3*4*8 = 384; in all 912.
    assert flops.tower_flops(3, 4, 1, 2.0) == 912
    assert flops.tower_flops(3, 4, 5, 2.0) == 5 * 912


def test_a_step_by_hand():
    config = tiny_config(
        data={"batch_size": 2},
        model={"image_size": (4, 4), "patch_size": 2, "stride": 2, "width": 4, "depth": 1, "num_heads": 2,
               "mlp_ratio": 2.0, "vocab_size": 10, "max_text_length": 6},
        text={"length": {"sentence": 6, "phrase": 4, "word": 3}},
        mla={"levels": ("sentence", "word"), "views": 1, "groups": 1},
        bmm={"align": "off", "word_weight": 1.0, "patch_weight": 1.0, "patch_ratio": 0.5, "rows": 1},
        optimizer={"name": "adamw"},
    )  # fmt: skip
    cost = flops.step_cost(config)
    # n tokens of width 4 through the block: n * (2*4*(16 + 16)) + 4 * 4 * n^2 = 256 n + 16 n^2.
    # 4 patches of 12 numbers: 2*4*12*4 = 384.
    assert cost.image == 2 * (384 + 256 * 5 + 16 * 25)
    assert cost.text == 2 * (256 * 6 + 16 * 36) + 2 * (256 * 3 + 16 * 9)
    assert cost.joint == 384 + 256 * 11 + 16 * 121
    assert cost.heads == 3 * (2 * 4 * 4 + 2 * 4 * 10) + 2 * (2 * 4 * 12)
    assert cost.matching == 2 * (2 * 4 * 4 * 4)
    assert cost.forward == cost.image + cost.text + cost.joint + cost.heads + cost.matching
    assert cost.training == 3 * cost.forward
    # Embeddings (48 + 4) + 8 + 40 and (10 + 6 + 2) * 4 + 8; block 16 + 60 + 20 + 2 * 76 and norm 8;
    # heads 20 + 8 + 10 and 60.
    shapes = parameter_shapes(IVTConfig.from_config(config["model"]))
    assert sum(map(math.prod, shapes.values())) == 100 + 80 + 256 + 98


@pytest.mark.parametrize("align", ["off", "exact", "fast"])
@pytest.mark.parametrize("views, levels, groups", [(1, ("sentence",), 1), (3, ("sentence", "phrase", "word"), 2)])
def test_forward_flops_are_the_matrix_products_of_the_objective(align, views, levels, groups):
    config = tiny_config(mla={"views": views, "levels": levels, "groups": groups}, bmm={"align": align})
    cost = flops.step_cost(config)
    assert cost.forward == pytest.approx(count_products(config, gradient=False), rel=0.005)


TEXT = {"width": 96, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0, "causal": True, "pooling": "end"}


@pytest.mark.parametrize("options", [{"projection": 64}, {"projection": 128, "pooling": "attention"}])
@pytest.mark.parametrize("remat", [False, True])
def test_flops_of_two_towers_are_the_matrix_products(options, remat):
    config = tiny_config(
        model={"towers": 2, "text": TEXT, "remat": remat, **options},
        bmm={"align": "fast", "word_weight": 0.0, "patch_weight": 0.0},
    )
    cost = flops.step_cost(config)
    assert cost.joint == cost.heads == 0
    assert cost.forward == pytest.approx(count_products(config, gradient=False), rel=0.005)
    assert cost.training == pytest.approx(count_products(config, gradient=True), rel=0.03)


@pytest.mark.parametrize(("remat", "matched"), [(False, 0.0), (True, 0.0), (False, 1.0)])
def test_training_flops_are_the_matrix_products_of_the_gradient(remat, matched):
    config = tiny_config(model={"remat": remat}, itm={"weight": matched})
    cost = flops.step_cost(config)
    assert (cost.recomputed > 0) == remat
    # The pixels need no gradient, hence a little below.
    assert cost.training == pytest.approx(count_products(config, gradient=True), rel=0.03)


def test_terms_that_are_off_cost_nothing():
    assert flops.step_cost(tiny_config(mla={"weight": 0.0})).image == 0
    off = flops.step_cost(tiny_config(bmm={"word_weight": 0.0, "patch_weight": 0.0}))
    assert (off.joint, off.heads) == (0, 0)


def tiny_config(**changes):
    config = default.get_config()
    config.model.update(dataclasses.asdict(tiny()))
    config.data.batch_size = 8
    config.text.length.update({"sentence": 40, "phrase": 16, "word": 12})
    config.bmm.rows = 4
    for section, values in changes.items():
        config[section].update(values)
    return config


def count_products(config, gradient):
    """FLOPs of every dot_general in the traced objective, loops by their length."""
    model, batch = build_model(config.model), config.data.batch_size
    rows = {
        "images": np.zeros((batch, config.mla.views, *config.model.image_size, 3), np.uint8),
        "erase": np.zeros((batch, config.mla.views, 4), np.int32),
        "text": {level: np.ones((batch, config.text.length[level]), np.int32) for level in config.text.length},
        "mask": {level: np.ones((batch, config.text.length[level]), bool) for level in config.text.length},
        "words": np.ones((batch, config.text.length["sentence"]), np.int32),
        "person_ids": np.arange(batch),
    }
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: model.init(key)["params"] | init_heads(key, config, 9))

    def loss(params):
        return Objective(model, config, mask_id=4)(params, rows, jax.random.key(0))[0]

    return products(jax.make_jaxpr(jax.grad(loss) if gradient else loss)(params).jaxpr)


def products(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([left[axis] for axis in contracted]))
        if equation.primitive.name == "cond":  # one branch for each platform
            total += min(products(branch.jaxpr) for branch in equation.params["branches"])
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += repeats * products(inner)
    return total
