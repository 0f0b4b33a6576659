"""Recipes for fine-tuning models pre-trained on image-text pairs; each changes the config of any dataset.

docs/recipe.md says which published recipe each follows.

clip: OpenAI's CLIP ViT-B/16, two towers, trained as IRRA is, without its masked-language term.
siglip: SigLIP B/16, two towers, trained in the same way.
vlmo: VLMo base, the single tower, with multi-level alignment and reconstruction.

The configs of the datasets begin with the commands that fetch and convert the weights.
"""

from ml_collections import ConfigDict


def clip(config: ConfigDict) -> ConfigDict:
    """Changes the config to fine-tune CLIP as IRRA (Jiang & Ye, CVPR 2023) does: SDM and the identity loss."""
    config.text.tokenizer = "openai/clip-vit-base-patch16"
    config.text.length = ConfigDict(dict.fromkeys(("sentence", "phrase", "word"), 77))
    config.model.update(
        {"vocab_size": 49408, "max_text_length": 77, "image_norm": True, "image_activation": "quick_gelu",
         "norm_epsilon": 1e-5, "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
         "pixel_deviation": (0.26862954, 0.26130258, 0.27577711), "projection": 512}
    )  # fmt: skip
    config.model.text.update(
        {"width": 512, "depth": 12, "num_heads": 8, "activation": "quick_gelu", "causal": True, "pooling": "end"}
    )
    config.train.init_from = "weights/clip"
    return as_irra(config)


def siglip(config: ConfigDict) -> ConfigDict:
    """Changes the config to fine-tune SigLIP in the same way; no recipe for persons is published."""
    config.text.tokenizer = "google/siglip-base-patch16-224"
    config.text.length = ConfigDict(dict.fromkeys(("sentence", "phrase", "word"), 64))
    config.model.update(
        {"vocab_size": 32000, "max_text_length": 64, "image_activation": "gelu_tanh", "projection": 768,
         "pooling": "attention"}
    )  # fmt: skip
    config.model.text.update(
        {"width": 768, "depth": 12, "num_heads": 12, "activation": "gelu_tanh", "pooling": "last",
         "projection_bias": True}
    )  # fmt: skip
    config.train.init_from = "weights/siglip"
    return as_irra(config)


def as_irra(config: ConfigDict) -> ConfigDict:
    """Changes the config of two towers to IRRA's losses, optimiser, schedule and batches."""
    config.data.batch_size = 64
    config.data.sampling = "uniform"
    config.model.update({"towers": 2, "stride": 16, "dropout": 0.0, "drop_path": 0.0})
    config.mla.update({"levels": ("sentence",), "views": 1})
    config.match.update({"loss": "sdm", "temperature": 0.02})
    config.id.weight = 1.0
    config.bmm.update({"align": "off", "word_weight": 0.0, "patch_weight": 0.0, "patch_block": 1})
    config.optimizer.update(
        {"name": "adam", "schedule": "smooth", "learning_rate": 1e-5, "bias_learning_rate": 2e-5, "start": 1e-6,
         "floor": 0.0, "warmup_epochs": 5.0, "b1": 0.9, "b2": 0.999, "epsilon": 1e-3, "weight_decay": 4e-5,
         "multipliers": ("^id_head/bias=2.5", "^id_head/=5")}
    )  # fmt: skip
    config.train.update({"epochs": 60, "first_epoch": 1, "freeze": ("^similarity/",)})  # the temperature is fixed
    return config


def vlmo(config: ConfigDict) -> ConfigDict:
    """Changes the config to fine-tune VLMo's tower with SDM over all levels and reconstruction: our recipe."""
    config.data.batch_size = 64
    config.model.update(
        {"relative_positions": True, "projection": 768, "max_text_length": 196, "dropout": 0.0, "drop_path": 0.15}
    )
    config.match.update({"loss": "sdm", "temperature": 0.02})
    config.optimizer.update(
        {"name": "adamw", "schedule": "smooth", "learning_rate": 3e-5, "bias_learning_rate": 3e-5, "start": 0.0,
         "floor": 0.0, "warmup_epochs": 3.0, "b1": 0.9, "b2": 0.98, "weight_decay": 0.01}
    )  # fmt: skip
    config.train.update({"epochs": 30, "first_epoch": 1, "init_from": "weights/vlmo"})
    return config


STARTS = {"clip": clip, "siglip": siglip, "vlmo": vlmo}
