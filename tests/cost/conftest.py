from ivt_jax.models.config import IVTConfig


def tiny(**changes):
    """The demo's sizes: 96x48 pixels, width 128, depth 4."""
    sizes = {"image_size": (96, 48), "patch_size": 12, "stride": 12, "width": 128, "depth": 4, "num_heads": 4}
    return IVTConfig(**{**sizes, "max_text_length": 64, "vocab_size": 2726, **changes})
