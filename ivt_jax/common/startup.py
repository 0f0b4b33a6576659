"""What a process settles before JAX starts: XLA's flags, the precision of products, where programs are kept."""

import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ivt_jax.common import compilation_cache
from ivt_jax.common.command import exit_code
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import UNWRITABLE

FLAGS = (
    # XLA's CPU backend gives reductions to YNNPACK together with the products in front of them. Some results are wrong:
    # beyond 32,768 rows in jaxlib 0.10.2 (jax-ml/jax#39103), and in 0.11.2 too if a factor is a broadcast number.
    # Without reductions, YNNPACK still computes single products. BENCHMARKS.md has the cost.
    "--xla_cpu_experimental_ynn_fusion_type=-reduce",
    "--xla_cpu_prefer_vector_width=512",  # a quarter more speed where the CPU has AVX-512, no change elsewhere
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",  # compiles the demo's step in a quarter less time
)
TESTED = ("0.10.2", "0.11.2")  # versions of jaxlib that know all of FLAGS
COMPILED_BYTES = 4 << 30  # of compiled programs kept; those not used for longest go first
_settled = set[str]()  # values of XLA_FLAGS that this process set: XLA need not be asked about them again


def run_command(work: Callable[[], int | None]) -> int:
    """Runs a command that starts JAX, with XLA's flags and the cache of programs set; returns its exit code.

    The code is that of `exit_code`. A platform that JAX cannot start is a user's mistake, as in `platform_fault`.
    """

    def started() -> int | None:
        set_xla_flags()
        keep_compiled()
        try:
            return work()
        except Exception as error:
            if fault := platform_fault(error):
                raise fault from None
            raise

    return exit_code(started)


def set_environment(config: Any) -> None:
    """Sets the flags and variables that XLA and JAX read when they start; those that the user set take precedence.

    Raises UserError as `set_xla_flags` does.
    """
    set_xla_flags(*(["--xla_gpu_deterministic_ops=true"] if config.runtime.deterministic else []))
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
    if given.strip() and given not in _settled and (reason := _refusal(text)):
        value = os.environ["XLA_FLAGS"].strip()
        variable = "XLA_FLAGS" if value.startswith("-") else f"XLA_FLAGS={value}"
        raise UserError(f"{variable}: {reason}; correct or remove it: jaxlib {version} does not start with it")
    os.environ["XLA_FLAGS"] = text
    _settled.add(text)


def known_flags(flags: Sequence[str]) -> list[str]:
    """Returns the flags that the installed jaxlib knows; XLA ends a process that sets any other."""
    return [flag for flag in flags if not _refusal(flag)]


def platform_fault(error: Exception) -> UserError | None:
    """Returns the UserError for an error by which JAX says that it cannot start a platform; None for all others."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    failed = re.search(r"Unable to initialize backend '.*?': (.*)", str(error))
    if failed:
        reason = failed[1].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
    elif platforms and isinstance(error, AssertionError) and not _finds_device():
        reason = "JAX sees no such device"  # it skips CUDA without a GPU, and then asserts that something is left
    else:
        return None
    if not platforms:
        return UserError(f"JAX cannot start: {reason}")
    return UserError(f"JAX_PLATFORMS={platforms}: {reason}; set JAX_PLATFORMS=cpu, or unset it to let JAX choose")


def keep_compiled() -> None:
    """Keeps compiled programs in a folder of the user's own, unless JAX_COMPILATION_CACHE_DIR names another.

    Removes entries that would keep JAX from writing or replacing others, now and when JAX warns about them.
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
        compilation_cache.remove_on_warning(cache)


def _given_flags() -> str:
    """Returns the user's flags: XLA_FLAGS, or the text of the file that it names, as XLA reads it."""
    given = os.environ.get("XLA_FLAGS", "")
    if given.strip()[:1] in ("", "-"):
        return given
    reason = "not a text file"
    try:
        text = Path(given).read_text()
        if "\0" not in text:
            return text
    except UnicodeDecodeError:
        pass
    except OSError as error:
        reason = error.strerror or str(error)
    raise UserError(f"XLA_FLAGS={given}: the file cannot be read ({reason}); name a file of flags, or set --FLAG=VALUE")


@functools.cache
def _refusal(flags: str) -> str:
    """Returns why XLA refuses the flags, "" if it accepts them. Asks in another process, which a refusal ends."""
    code = "from jaxlib import xla_client; xla_client.CompileOptions()"
    environment = {**os.environ, "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "0"}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    logged = re.search(r"^[EF]\d{4} .*?\] (.*)", asked.stderr, re.MULTILINE)
    if not (asked.returncode and logged):
        return ""
    return logged[1].replace(" in XLA_FLAGS", "").strip().rstrip(".")


def _finds_device() -> bool:
    import jax

    try:
        return bool(jax.devices())
    except (AssertionError, RuntimeError):
        return False
