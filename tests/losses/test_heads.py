"""The heads: which a config trains, how they begin, and that they are no part of the model."""

import jax
import numpy as np

from configs import default
from ivt_jax.losses.heads import HEADS, heads_of, init_heads, without_heads


def config_of(**changes):
    config = default.get_config()
    config.model.update({"width": 12, "projection": 4})
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def test_the_default_trains_none():
    assert heads_of(config_of()) == [] and init_heads(jax.random.key(0), config_of(), 5) == {}


def test_each_is_there_if_its_loss_is():
    config = config_of(id__weight=0.5, itm__weight=1.0, match__learned=True, match__temperature=0.07)
    assert heads_of(config) == list(HEADS)
    heads = init_heads(jax.random.key(0), config, 5)
    shapes = jax.tree.map(np.shape, heads)
    assert shapes["id_head"] == {"kernel": (4, 5), "bias": (5,)}  # of embeddings
    assert shapes["itm_head"] == {"kernel": (12, 2), "bias": (2,)}  # of tokens
    np.testing.assert_allclose(np.exp(heads["temperature"]["log_scale"]), 1 / 0.07, rtol=1e-6)
    assert heads_of(config_of(match__learned=True, mla__weight=0.0)) == []  # nothing would learn it


def test_they_are_no_part_of_the_model():
    model = {"blocks": {"kernel": 1}, "similarity": {"log_scale": 2}}
    assert without_heads({**model, **dict.fromkeys(HEADS, 3)}) == model
    assert without_heads(model) is model
