"""Heads: parameters that only training has. Checkpoints contain them; evaluation, search and exports do not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ivt_jax.losses import identity, itm

ID_HEAD = "id_head"  # the classifier of losses/identity.py
ITM_HEAD = "itm_head"  # the classifier of losses/itm.py
TEMPERATURE = "temperature"  # log_scale (): the logarithm of 1 / temperature, by which similarities are multiplied
HEADS = (ID_HEAD, ITM_HEAD, TEMPERATURE)


def heads_of(config: Mapping[str, Any]) -> list[str]:
    """Returns the names of the heads that a config trains."""
    on = {
        ID_HEAD: config["id"]["weight"],
        ITM_HEAD: config["itm"]["weight"],
        TEMPERATURE: config["mla"]["weight"] and config["match"]["learned"],
    }
    return [name for name in HEADS if on[name]]


def init_heads(key: jax.Array, config: Mapping[str, Any], persons: int) -> dict[str, dict[str, jax.Array]]:
    """Returns the initial parameters of the config's heads. persons: classes of the identity loss."""
    model = config["model"]
    initial = {
        ID_HEAD: lambda: identity.init_classifier(
            jax.random.fold_in(key, 1), model["projection"] or model["width"], persons
        ),
        ITM_HEAD: lambda: itm.init_classifier(jax.random.fold_in(key, 2), model["width"]),
        TEMPERATURE: lambda: {"log_scale": -jnp.log(jnp.float32(config["match"]["temperature"]))},
    }
    return {name: initial[name]() for name in heads_of(config)}


def without_heads(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the parameters of the model alone."""
    if not any(name in params for name in HEADS):
        return params
    return {part: value for part, value in params.items() if part not in HEADS}
