"""CUHK-PEDES: MLA + BMM with reconstruction, the released optimiser; `:release` is the released recipe.

python -m ivt_jax.main --config=configs/cuhk.py --config.data.root=DATA/CUHK-PEDES
python -m ivt_jax.main --config=configs/cuhk.py:release
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "release"."""
    config = default.get_config()
    config.data.name = "cuhk_pedes"
    config.data.root = "data/CUHK-PEDES"
    config.model.stride = 12
    config.bmm.patch_block = 2
    return default.released(config) if default.check_variant(variant, "", "release") == "release" else config
