"""What a command sets before JAX starts: XLA's flags, the cache of compiled programs, and how Python ends."""

import atexit
import functools
import gc
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ivt_jax.common.command import exit_code
from ivt_jax.common.compilation_cache import keep_compiled
from ivt_jax.common.errors import UserError

Result = TypeVar("Result")

FLAGS = (
    # XLA's CPU backend gives reductions to YNNPACK together with the products in front of them. Some results are wrong:
    # beyond 32,768 rows in jaxlib 0.10.2 (jax-ml/jax#39103), and in 0.11.2 too if a factor is a broadcast number.
    # Without reductions, YNNPACK still computes single products. docs/benchmarks/speed.md has the cost.
    "--xla_cpu_experimental_ynn_fusion_type=-reduce",
    "--xla_cpu_prefer_vector_width=512",  # a quarter more speed if the CPU has AVX-512, no change elsewhere
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",  # compiles the demo's step in a quarter less time
)
# Variables of a process that compiles for an accelerator without using one.
COMPILE_ONLY = {
    "tpu": {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # libtpu would ask Google Cloud's metadata server what TPU this is
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: libtpu warns if there is none; the topology decides
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # beside a process that uses or compiles for a TPU
    },
    "cuda": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
}
TESTED = ("0.10.2", "0.11.2")  # versions of jaxlib that know all of FLAGS
_GC_THRESHOLD = 50_000  # new objects between two garbage collections; Python's 700 slows imports and tracing
_accepted = set[str]()  # values of XLA_FLAGS that this process set: XLA need not be asked about them again


def run_command(work: Callable[[], int | None]) -> int:
    """Runs a command that starts JAX, with XLA's flags and the cache of programs set; returns `exit_code`'s code.

    A platform that JAX cannot start is a user's mistake, as in `platform_fault`.
    """

    def start() -> int | None:
        gc.set_threshold(_GC_THRESHOLD)
        atexit.register(gc.freeze)  # otherwise Python collects garbage among all imported objects at exit, for 0.3 s
        set_xla_flags()
        keep_compiled()
        return on_platform(work)

    return exit_code(start)


def on_platform(work: Callable[[], Result]) -> Result:
    """Returns the result of work that starts JAX. Raises `platform_fault`'s UserError if JAX cannot start."""
    try:
        return work()
    except Exception as error:
        if fault := platform_fault(error):
            raise fault from None
        raise


def set_environment(config: Any, compile_for: str = "") -> None:
    """Sets the variables that XLA and JAX read when they start, except those that the user has set.

    compile_for: "tpu" or "cuda" lets the process compile for it and run on the CPU alone; COMPILE_ONLY then replaces
    what the user has set. Raises UserError as `set_xla_flags`.
    """
    more = ["--xla_gpu_deterministic_ops=true"] if config.runtime.deterministic else []
    if compile_for:
        os.environ.update(COMPILE_ONLY[compile_for])
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA logs warnings about kernels it cannot time here
        more += ["--xla_gpu_autotune_level=0"] if compile_for == "cuda" else []  # it would time kernels on the GPU
    set_xla_flags(*more)
    if config.model.dtype == "float32":  # by default TPUs compute float32 products in bfloat16 passes, GPUs in TF32
        os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


def set_xla_flags(*more: str) -> None:
    """Adds FLAGS and `more` to XLA_FLAGS, except flags that are set there or in the file that it names.

    Raises UserError if XLA refuses the user's flags, which would end the process, or if the file cannot be read.
    """
    given = _given_flags()
    names = {flag.partition("=")[0] for flag in given.split()}
    flags: Sequence[str] = [flag for flag in (*FLAGS, *more) if flag.partition("=")[0] not in names]
    version = importlib.metadata.version("jaxlib")
    if version not in TESTED:
        flags = known_flags(flags)
    text = " ".join([*flags, *given.splitlines()]).strip()
    if given.strip() and given not in _accepted and (reason := _refusal(text)):
        value = os.environ["XLA_FLAGS"].strip()
        variable = "XLA_FLAGS" if value.startswith("-") else f"XLA_FLAGS={value}"
        raise UserError(f"{variable}: {reason}; correct or remove it: jaxlib {version} does not start with it")
    os.environ["XLA_FLAGS"] = text
    _accepted.add(text)


def known_flags(flags: Sequence[str]) -> list[str]:
    """Returns the flags that the installed jaxlib knows; XLA ends a process that sets any other."""
    return [flag for flag in flags if not _refusal(flag)]


def _given_flags() -> str:
    """Returns the user's flags: XLA_FLAGS, or the text of the file that it names, as XLA reads it."""
    given = os.environ.get("XLA_FLAGS", "")
    if given.strip()[:1] in ("", "-"):
        return given
    try:
        text = Path(given).read_text()
        reason = "not a text file" if "\0" in text else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not a text file")
    if not reason:
        return text
    raise UserError(f"XLA_FLAGS={given}: the file cannot be read ({reason}); name a file of flags, or set --FLAG=VALUE")


@functools.cache
def _refusal(flags: str) -> str:
    """Returns why XLA refuses the flags, "" if it accepts them. Asks in another process, which a refusal ends."""
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    environment = {**os.environ, "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "0"}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    logged = re.search(r"^[EF]\d{4} .*?\] (.*)", asked.stderr, re.MULTILINE)
    return logged[1].replace(" in XLA_FLAGS", "").strip().rstrip(".") if asked.returncode and logged else ""


def platform_fault(error: Exception) -> UserError | None:
    """Returns the UserError for an error by which JAX says that it cannot start a platform; None for all others."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if failed := re.search(r"Unable to initialize backend '.*?': (.*)", str(error)):
        reason = failed[1].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
    elif platforms and isinstance(error, AssertionError) and not _finds_device():
        reason = "JAX sees no such device"  # without a GPU it skips CUDA, then asserts that a platform is left
    else:
        return None
    if not platforms:
        return UserError(f"JAX cannot start: {reason}")
    return UserError(f"JAX_PLATFORMS={platforms}: {reason}; set JAX_PLATFORMS=cpu, or unset it to let JAX choose")


def _finds_device() -> bool:
    import jax

    try:
        return bool(jax.devices())
    except (AssertionError, RuntimeError):
        return False
