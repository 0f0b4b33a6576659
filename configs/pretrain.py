"""Pre-training on image-text pairs, the stage before fine-tuning: ITC, ITM and MLM.

python -m input_pipeline.prepare --pairs='SHARDS/*.tar' --out=data/pairs      # once: makes the index
python -m ivt_jax.main --config=configs/pretrain.py --config.data.root=data/pairs
python -m ivt_jax.main --config=configs/cuhk.py --config.train.init_from=runs/pretrain

python -m ivt_jax.main --config=configs/pretrain.py:release    # ITC, ITM, texts and optimiser as in the IVT release
python -m ivt_jax.main --config=configs/pretrain.py:smoke      # a few steps of a tiny tower: minutes on a CPU
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "release" or "smoke"."""
    default.check_variant(variant, "", "release", "smoke")
    config = default.pretrained_on_pairs(default.get_config())
    config.data.update({"name": "pairs", "root": "data/pairs", "batch_size": 512})
    config.text.length.sentence = 50
    config.train.update({"first_epoch": 1, "epochs": 120})
    if variant == "release":
        config.text.clean = "released"
        config.match.update({"normalise": "neither", "temperature": 0.5})
        return config
    config.optimizer.update(
        {"name": "adamw", "schedule": "smooth", "learning_rate": 3e-4, "bias_learning_rate": 3e-4, "start": 0.0,
         "floor": 1e-6, "warmup_epochs": 1.0, "weight_decay": 0.05, "clip_norm": 1.0}
    )  # fmt: skip
    config.train.epochs = 30
    return default.smoke(config) if variant == "smoke" else config
