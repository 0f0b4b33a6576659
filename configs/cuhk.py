"""CUHK-PEDES: MLA + BMM with reconstruction, the released optimiser.

python -m ivt_jax.main --config=configs/cuhk.py --config.data.root=DATA/CUHK-PEDES
python -m ivt_jax.main --config=configs/cuhk.py:release    # the recipe of the IVT release
python -m ivt_jax.main --config=configs/cuhk.py:smoke      # a few steps of a tiny tower: minutes on a CPU
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "release" or "smoke"."""
    config = default.get_config()
    config.data.name = "cuhk_pedes"
    config.data.root = "data/CUHK-PEDES"
    config.model.stride = 12
    config.bmm.patch_block = 2
    return default.with_variant(config, variant)
