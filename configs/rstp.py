"""RSTPReid: 48 pairs per batch, patches without overlap, epochs counted from 0.

python -m ivt_jax.main --config=configs/rstp.py --config.data.root=DATA/RSTPReid
python -m ivt_jax.main --config=configs/rstp.py:release
"""

from ml_collections import ConfigDict

from configs import cuhk


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "release"."""
    config = cuhk.get_config(variant)
    config.data.name = "rstp_reid"
    config.data.root = "data/RSTPReid"
    config.data.batch_size = 48
    config.model.stride = 16
    config.bmm.patch_block = 1
    config.train.first_epoch = 0
    return config
