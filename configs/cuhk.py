"""CUHK-PEDES: MLA + BMM with reconstruction, the released optimiser.

python -m ivt_jax.main --config=configs/cuhk.py --config.data.root=DATA/CUHK-PEDES
python -m ivt_jax.main --config=configs/cuhk.py:release    # the recipe of the IVT release
python -m ivt_jax.main --config=configs/cuhk.py:smoke      # a few steps of a tiny tower: minutes on a CPU

From pre-trained models (configs/starts.py); the commands before each run fetch and convert its weights:
python -m ivt_jax.convert --source=clip --weights=hf:openai/clip-vit-base-patch16 --out=weights/clip
python -m ivt_jax.main --config=configs/cuhk.py:clip       # IRRA's recipe without its masked-language term
python -m ivt_jax.convert --source=siglip --weights=hf:google/siglip-base-patch16-224 --out=weights/siglip
python -m ivt_jax.main --config=configs/cuhk.py:siglip     # the same on SigLIP
pip install -e '.[torch]'                                   # VLMo's file is one of PyTorch's
curl -Lo vlmo.pt https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/vlmo_base_patch16_224.pt
python -m ivt_jax.convert --source=vlmo --weights=vlmo.pt --config=configs/cuhk.py:vlmo --out=weights/vlmo
python -m ivt_jax.main --config=configs/cuhk.py:vlmo       # ours: single tower, three levels, reconstruction, SDM
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "release", "smoke", "clip", "siglip" or "vlmo"."""
    config = default.get_config()
    config.data.name = "cuhk_pedes"
    config.data.root = "data/CUHK-PEDES"
    config.model.stride = 12
    config.bmm.patch_block = 2
    return default.with_variant(config, variant)
