"""ICFG-PEDES: as CUHK-PEDES, with epochs counted from 0. Holds out 5% of the training persons for validation.

python -m ivt_jax.main --config=configs/icfg.py --config.data.root=DATA/ICFG-PEDES
python -m ivt_jax.main --config=configs/icfg.py:release    # the recipe of the IVT release
python -m ivt_jax.main --config=configs/icfg.py:smoke      # a few steps of a tiny tower: minutes on a CPU
"""

from ml_collections import ConfigDict

from configs import cuhk, default


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "release" or "smoke"."""
    config = cuhk.get_config()
    config.data.name = "icfg_pedes"
    config.data.root = "data/ICFG-PEDES"
    config.train.first_epoch = 0
    return default.with_variant(config, variant)
