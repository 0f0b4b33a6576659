"""RSTPReid: 48 pairs per batch, patches without overlap, epochs counted from 0.

python -m ivt_jax.main --config=configs/rstp.py --config.data.root=DATA/RSTPReid
python -m ivt_jax.main --config=configs/rstp.py:release    # the recipe of the IVT release
python -m ivt_jax.main --config=configs/rstp.py:smoke      # a few steps of a tiny tower: minutes on a CPU
"""

from ml_collections import ConfigDict

from configs import cuhk, default


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "release" or "smoke"."""
    config = cuhk.get_config()
    config.data.name = "rstp_reid"
    config.data.root = "data/RSTPReid"
    config.data.batch_size = 48
    config.model.stride = 16
    config.bmm.patch_block = 1
    config.train.first_epoch = 0
    return default.with_variant(config, variant)
