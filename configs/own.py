"""Own pictures and captions in a table, CSV or JSONL; docs/datasets.md describes it.

python -m input_pipeline.doctor --dataset=own --root=my.csv
python -m ivt_jax.main --config=configs/own.py:small --config.data.root=my.csv   # a small tower, on a CPU: minutes
python -m ivt_jax.main --config=configs/own.py --config.data.root=my.csv         # the paper's tower, on accelerators
python -m ivt_jax.main --config=configs/own.py:release --config.data.root=my.csv # the recipe of the IVT release
python -m ivt_jax.main --config=configs/own.py:smoke --config.data.root=my.csv   # a few steps, to try the table

From pre-trained models (configs/starts.py), the best start for small data; the commands before each run fetch and
convert its weights:
python -m ivt_jax.convert --source=clip --weights=hf:openai/clip-vit-base-patch16 --out=weights/clip
python -m ivt_jax.main --config=configs/own.py:clip --config.data.root=my.csv    # IRRA's recipe without its masked term
python -m ivt_jax.convert --source=siglip --weights=hf:google/siglip-base-patch16-224 --out=weights/siglip
python -m ivt_jax.main --config=configs/own.py:siglip --config.data.root=my.csv  # the same on SigLIP
pip install -e '.[torch]'                                                        # VLMo's file is one of PyTorch's
curl -Lo vlmo.pt https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/vlmo_base_patch16_224.pt
python -m ivt_jax.convert --source=vlmo --weights=vlmo.pt --config=configs/own.py:vlmo --out=weights/vlmo
python -m ivt_jax.main --config=configs/own.py:vlmo --config.data.root=my.csv    # ours: single tower, three levels
"""

from ml_collections import ConfigDict

from configs import default
from configs.starts import STARTS


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "release", "smoke", "clip", "siglip", "vlmo" or "small"."""
    config = default.get_config()
    config.data.name = "own"
    config.data.root = "data/own"
    config.data.sampling = "uniform"  # persons may have a single pair, which `identity` would repeat within a batch
    if variant not in STARTS:  # those need the tokenizer of their weights
        config.text.tokenizer = ""  # no download
        config.model.vocab_size = 2726
    return default.with_variant(config, variant, small=small)


def small(config: ConfigDict) -> ConfigDict:
    """Changes the config to a small tower, as of the demo, for hundreds of pictures on a CPU."""
    config.data.batch_size = 32
    config.augment.pad = 4
    config.text.length = ConfigDict({"sentence": 64, "phrase": 32, "word": 32})
    config.model.update(
        {"image_size": (96, 48), "patch_size": 12, "stride": 12, "width": 128, "depth": 4, "num_heads": 4,
         "max_text_length": 64, "drop_path": 0.0, "dtype": "float32", "init_std": 0.09, "remat": True}
    )  # fmt: skip
    config.mla.views = 1
    config.match.update({"loss": "sdm", "temperature": 0.02})
    config.bmm.update({"align": "fast", "rows": 16})
    config.optimizer.update(
        {"name": "muon", "momentum": 0.95, "schedule": "smooth", "learning_rate": 2e-3, "bias_learning_rate": 2e-3,
         "start": 0.0, "floor": 1e-5, "weight_decay": 0.05, "clip_norm": 10.0}
    )  # fmt: skip
    config.train.steps = 600
    config.train.eval_every = 100
    return config
