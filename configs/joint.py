"""CUHK-PEDES, ICFG-PEDES and RSTPReid together, as CUHK-PEDES alone. An epoch has every pair of each once.

python -m ivt_jax.main --config=configs/joint.py \\
    --config.data.sources="('cuhk:DATA/CUHK-PEDES','icfg:DATA/ICFG-PEDES','rstp:DATA/RSTPReid')"
python -m ivt_jax.main --config=configs/joint.py --config.data.weights="(1,1,1)"    # equal shares, not by size
python -m ivt_jax.main --config=configs/joint.py:release    # the recipe of the IVT release
python -m ivt_jax.main --config=configs/joint.py:smoke      # a few steps of a tiny tower: minutes on a CPU

From pre-trained models (configs/starts.py); the commands before each run fetch and convert its weights:
python -m ivt_jax.convert --source=clip --weights=hf:openai/clip-vit-base-patch16 --out=weights/clip
python -m ivt_jax.main --config=configs/joint.py:clip       # IRRA's recipe without its masked-language term
python -m ivt_jax.convert --source=siglip --weights=hf:google/siglip-base-patch16-224 --out=weights/siglip
python -m ivt_jax.main --config=configs/joint.py:siglip     # the same on SigLIP
pip install -e '.[torch]'                                   # VLMo's file is one of PyTorch's
curl -Lo vlmo.pt https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/vlmo_base_patch16_224.pt
python -m ivt_jax.convert --source=vlmo --weights=vlmo.pt --config=configs/joint.py:vlmo --out=weights/vlmo
python -m ivt_jax.main --config=configs/joint.py:vlmo       # ours: single tower, three levels, reconstruction, SDM

Any other mix, also with own tables, is a longer or shorter --config.data.sources; docs/training.md says more.
"""

from ml_collections import ConfigDict

from configs import cuhk, default


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "release", "smoke", "clip", "siglip" or "vlmo"."""
    config = cuhk.get_config()
    config.data.name = "joint"
    config.data.root = ""
    config.data.sources = ("cuhk:data/CUHK-PEDES", "icfg:data/ICFG-PEDES", "rstp:data/RSTPReid")
    return default.with_variant(config, variant)
