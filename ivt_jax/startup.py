"""What a process settles before JAX starts: XLA's flags, the precision of products, where programs are kept."""

import os
from pathlib import Path
from typing import Any

from input_pipeline.files import UNWRITABLE
from ivt_jax import compilation_cache

COMPILED_BYTES = 4 << 30  # of compiled programs kept; those not used for longest go first


def set_environment(config: Any) -> None:
    """What XLA and JAX read when they start; flags and variables that the user set win."""
    xla = [
        "--xla_cpu_prefer_vector_width=512",  # a quarter more speed where the CPU has AVX-512, no change elsewhere
        "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",  # compiles the demo's step in a quarter less time
    ]
    if config.runtime.deterministic:
        xla.append("--xla_gpu_deterministic_ops=true")
    os.environ["XLA_FLAGS"] = " ".join([*xla, os.environ.get("XLA_FLAGS", "")])
    if config.model.dtype == "float32":  # by default TPUs compute float32 products in bfloat16 passes, GPUs in TF32
        os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


def keep_compiled() -> None:
    """Compiled programs are kept in a folder of the user's own, where JAX_COMPILATION_CACHE_DIR names no other.

    Entries that would keep JAX from writing or replacing others are removed, now and when JAX complains.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ivt_jax" / "compiled"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # programs are executed as they lie there
    except (OSError, RuntimeError):  # no home, or one that cannot be written: everything is compiled each time
        return
    if not os.access(cache, os.W_OK) or any(part in f"{cache}/" for part in UNWRITABLE):  # JAX finds no entries there
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    limit = os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(COMPILED_BYTES))
    if limit != "-1":  # without a limit JAX writes no -atime
        compilation_cache.remove_unusable(cache)
        compilation_cache.remove_on_complaint(cache)
