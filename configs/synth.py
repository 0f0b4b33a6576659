"""PEDES-Synth, the generated benchmark: what `make demo` trains, in minutes on two CPU cores.

python -m input_pipeline.synthetic --out=data/pedes-synth --size=96x48
python -m ivt_jax.main --config=configs/synth.py --workdir=runs/demo
python -m ivt_jax.main --config=configs/synth.py:mla          # one of the variants below
"""

from ml_collections import ConfigDict

from configs import default

TERMS = ("baseline", "mla", "bmm_align", "bmm_reconstruct", "full")
OPTIMIZERS = ("sgd", "adamw", "layer_decay", "ema", "muon")
# Choices that cost time. The demo has one view, `fast` alignment, three levels and reconstruction.
CHOICES = {
    "align_off": {"bmm.align": "off"},
    "align_exact": {"bmm.align": "exact"},
    "align_fast": {"bmm.align": "fast"},
    "one_view": {"mla.views": 1},
    "three_views": {"mla.views": 3},
    "sentence_level": {"mla.levels": ("sentence",)},
    "no_reconstruction": {"bmm.word_weight": 0.0, "bmm.patch_weight": 0.0},
}
# Matching losses in place of CMPM, the demo's. Of two or three temperatures each, these had the best R@1 on validation
# after 500 steps of "baseline" on 800 persons, with one seed. docs/benchmarks/training.md compares them.
LOSSES = {
    "sdm": {"match.loss": "sdm", "match.temperature": 0.02},
    "itc": {"match.loss": "itc", "match.temperature": 0.07},
    "tal": {"match.loss": "tal", "match.temperature": 0.05},
}
# One tower against two. Both have matching at three levels, no reconstruction, and equally many parameters in blocks
# and embeddings, to 0.1%.
TOWERS = ("mla", "two_towers")
# Pre-training, each image a person of its own: with all of its losses, or some (ivt_jax/benchmarks/pretraining.py).
PRETRAINING = {
    "pretrain_itc": {"itm.weight": 0.0, "bmm.word_weight": 0.0}, "pretrain_itc_mlm": {"itm.weight": 0.0},
    "pretrain": {},
}  # fmt: skip
VARIANTS = ("", *TERMS, *OPTIMIZERS, *CHOICES, *LOSSES, "two_towers", *PRETRAINING)


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" is the demo; the others are ablations with equal steps."""
    default.check_variant(variant, *VARIANTS)
    config = default.get_config()
    config.data.name = "pedes_synth"
    config.data.root = "data/pedes-synth"
    config.data.batch_size = 32
    config.data.instances = 2
    config.augment.pad = 4
    config.augment.erase = 0.0  # no overfitting in two passes over the data
    config.text.tokenizer = ""
    config.text.length = ConfigDict({"sentence": 48, "phrase": 20, "word": 20})
    config.model.update(
        {"image_size": (96, 48), "patch_size": 12, "stride": 12, "width": 128, "depth": 4, "num_heads": 4,
         "vocab_size": 2726, "max_text_length": 64, "dropout": 0.0, "drop_path": 0.0, "dtype": "float32",
         "init_std": 0.09, "remat": True, "unroll": True}
    )  # fmt: skip
    config.mla.views = 1
    config.bmm.align = "fast"
    config.bmm.rows = 16
    config.bmm.word_ratio = 0.5  # the more words are hidden, the more is to be read from the image
    config.bmm.word_weight = 10.0  # at 1 their gradients are too small beside those of matching
    config.bmm.patch_weight = 2.0
    config.optimizer.update(
        {"name": "muon", "momentum": 0.95, "schedule": "smooth", "learning_rate": 4e-3, "bias_learning_rate": 4e-3,
         "start": 0.0, "floor": 1e-5, "warmup_epochs": 0.1, "weight_decay": 0.05, "clip_norm": 10.0}
    )  # fmt: skip
    config.train.steps = 2300
    config.train.eval_every = 1150
    if variant in OPTIMIZERS:
        return other_optimizer(config, variant)
    if variant in PRETRAINING:
        config = default.pretrained_on_pairs(config)
        # By AdamW at 1e-3 the loss rises again.
        config.optimizer.update({"name": "adamw", "learning_rate": 5e-4, "bias_learning_rate": 5e-4})
        config.update_from_flattened_dict(PRETRAINING[variant])
        return config
    if variant == "two_towers":
        return two_towers(without_terms(config, "mla"))
    return changed(config, variant) if variant else config


def changed(config: ConfigDict, variant: str) -> ConfigDict:
    """Changes any config by one of TERMS, CHOICES or LOSSES."""
    if variant in TERMS:
        return without_terms(config, variant)
    config.update_from_flattened_dict({**CHOICES, **LOSSES}[variant])
    return config


def without_terms(config: ConfigDict, variant: str) -> ConfigDict:
    """Turns off all terms but one, to measure what each adds to matching sentences. "full" keeps all, as the demo."""
    if variant not in ("mla", "full"):
        config.mla.levels = ("sentence",)
    if variant not in ("bmm_align", "full"):
        config.bmm.align = "off"
    if variant not in ("bmm_reconstruct", "full"):
        config.bmm.word_weight = config.bmm.patch_weight = 0.0
    return config


def two_towers(config: ConfigDict) -> ConfigDict:
    """Replaces the single tower by two of the same width and depth.

    A block of the single tower has attention (4 width^2) and two MLPs (8 width^2 each). A block of either tower has
    attention and one MLP (6 width^2), so both towers together have 20 width^2 as well.
    """
    config.model.towers = 2
    config.model.mlp_ratio = 3.0
    same = {key: config.model[key] for key in ("width", "depth", "num_heads", "mlp_ratio")}
    config.model.text.update({**same, "pooling": "first"})
    return config


def other_optimizer(config: ConfigDict, variant: str) -> ConfigDict:
    """Changes the optimiser; "muon" is the demo's, "layer_decay" and "ema" are AdamW with one more thing."""
    if variant == "muon":
        return config
    config.optimizer.update({"name": "adamw", "learning_rate": 1e-3, "bias_learning_rate": 1e-3})
    if variant == "sgd":
        config.optimizer.update({"name": "sgd", "momentum": 0.9, "learning_rate": 0.1, "bias_learning_rate": 0.1})
        config.optimizer.weight_decay = 1e-4
    if variant == "layer_decay":
        config.optimizer.layer_decay = 0.75
    if variant == "ema":
        config.optimizer.ema = 0.995
    return config
