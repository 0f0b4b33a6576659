"""ICFG-PEDES: as CUHK-PEDES, epochs counted from 0; it has no validation split, 5% of the persons are held out.

python -m ivt_jax.main --config=configs/icfg.py --config.data.root=DATA/ICFG-PEDES
python -m ivt_jax.main --config=configs/icfg.py:release
"""

from ml_collections import ConfigDict

from configs import cuhk


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "release"."""
    config = cuhk.get_config(variant)
    config.data.name = "icfg_pedes"
    config.data.root = "data/ICFG-PEDES"
    config.train.first_epoch = 0
    return config
