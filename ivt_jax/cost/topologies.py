"""Accelerators that a step can be compiled for on a machine without one: published rates, names, devices."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ivt_jax.common.errors import UserError
from ivt_jax.common.messages import install

EXAMPLES = "v5e:4x4, v5p:2x4x4, v6e:8x8, h100:8, h200:1 or h200:2x8 (2 hosts of 8 GPUs)"


class Chip(NamedTuple):
    """Published figures of one chip or GPU."""

    memory: int  # bytes of HBM
    flops: float  # FLOP/s of bfloat16 products without sparsity
    hbm: float  # bytes/s
    links: float  # bytes/s that it sends to other chips, all links together; it receives as many
    axes: int  # of the topology at most; 0 for a GPU
    clock: float = 0.0  # of a GPU, GHz


CHIPS = {
    # https://cloud.google.com/tpu/docs/v5e, /v5p and /v6e: HBM in GiB; links: half of the bidirectional bandwidth.
    "v5e": Chip(16 << 30, 197e12, 819e9, 200e9, 2),
    "v5p": Chip(95 << 30, 459e12, 2765e9, 600e9, 3),
    "v6e": Chip(32 << 30, 918e12, 1638e9, 400e9, 2),
    # NVIDIA's data sheets of H100 and H200, SXM: half of the products' rate with sparsity, half of NVLink's 900 GB/s.
    # Memory and clock: the specs that XLA publishes, openxla/xla xla/backends/gpu/target_config/specs/.
    "h100": Chip(84_942_979_072, 989e12, 3350e9, 450e9, 0, 1.98),
    "h200": Chip(151_397_597_184, 989e12, 4800e9, 450e9, 0, 1.98),
}
# Limits of every Hopper GPU (compute capability 9.0), as CUDA's cudaDeviceProp has them; XLA reads them to choose and
# tile its kernels.
HOPPER = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 << 10, "shared_memory_per_block_optin": 227 << 10,
    "shared_memory_per_core": 228 << 10, "registers_per_block_limit": 1 << 16, "registers_per_core_limit": 1 << 16,
    "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535, "core_count": 132,
    "fpus_per_core": 128, "l2_cache_size": 50 << 20,
}  # fmt: skip
CUDA, CUDNN = "12.8.0", (9, 10)  # versions that XLA assumes on the machine with the GPU


class Topology(NamedTuple):
    """A kind of chip, and how many of them there are along each axis."""

    name: str
    kind: str  # of CHIPS
    shape: tuple[int, ...]  # of a GPU: hosts, GPUs of each host

    @property
    def chip(self) -> Chip:
        """The figures of each chip."""
        return CHIPS[self.kind]

    @property
    def platform(self) -> str:
        """JAX's name of the compiler: "tpu" or "cuda"."""
        return "tpu" if self.chip.axes else "cuda"


def read_topology(name: str) -> Topology:
    """Returns the topology of a name such as v5e:4x4, h200:8 or h200:2x8. Raises UserError; needs no JAX."""
    kind, _, text = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", text):
        raise UserError(f"--topology={name} is not one of {', '.join(CHIPS)} with a shape, such as {EXAMPLES}")
    sizes, axes = tuple(map(int, text.split("x"))), CHIPS[kind].axes
    if axes and len(sizes) != axes:
        example = "x".join(["4"] * axes)
        raise UserError(f"--topology={name}: a {kind} has {axes} axes, as in {kind}:{example}")
    if not axes and len(sizes) > 2:
        raise UserError(f"--topology={name}: write {kind}:GPUS, or {kind}:HOSTSxGPUS with the GPUs of each host")
    return Topology(name, kind, sizes if axes or len(sizes) == 2 else (1, *sizes))


def topology_devices(topology: Topology) -> Sequence[Any]:
    """Returns the devices of a topology, to compile for; nothing can run on them.

    Before JAX is imported, `startup.set_environment` must have been called with the topology's platform. Raises
    UserError if the compiler is not installed or refuses the shape.
    """
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_enable_compilation_cache", False)  # JAX cannot load a program for a device it does not have
    try:
        if topology.platform == "tpu":
            options: dict[str, Any] = {"topology_name": topology.name, **_host_bounds(topology.shape)}
        else:
            hosts, each = topology.shape
            options = {"target_config": target_config(topology), "topology": f"1x{hosts}x{each}"}
        return topologies.get_topology_desc(platform=topology.platform, **options).devices
    except Exception as error:  # its type depends on what is missing
        raise UserError(f"--topology={topology.name}: {_reason(topology, error)}") from error


def _host_bounds(shape: tuple[int, ...]) -> dict[str, list[int]]:
    """Returns the option for a single chip; libtpu assumes hosts of 2x2 chips."""
    return {"chips_per_host_bounds": [1, 1, 1]} if shape in ((1, 1), (1, 1, 1)) else {}


def _reason(topology: Topology, error: Exception) -> str:
    """Returns in words why JAX gave no devices."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, (NotImplementedError, ImportError)) or "not installed" in first:
        return f"its compiler is not installed: {install('tpu-plan' if topology.platform == 'tpu' else 'gpu-plan')}"
    return f"the compiler refuses it ({first.removeprefix('INVALID_ARGUMENT: ').rstrip('.')}); try {EXAMPLES}"


def target_config(topology: Topology) -> str:
    """Returns the description of a GPU that XLA compiles for: stream_executor.GpuTargetConfigProto, as text."""
    chip, (major, minor), name = topology.chip, CUDNN, f'"NVIDIA {topology.kind.upper()}"'
    facts = {
        **HOPPER, "name": name, "device_memory_size": chip.memory,
        "memory_bandwidth": int(chip.hbm), "clock_rate_ghz": chip.clock, "runtime_version": f'"{CUDA}"',
    }  # fmt: skip
    lines = [f"  {name}: {value}" for name, value in facts.items()]
    lines += [
        "  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }",
        "  device_interconnect_info { active_links: 18 }",  # NVLink's; XLA chooses its kernel of all-reduce by it
    ]
    version = f"dnn_version_info {{ major: {major} minor: {minor} }}"
    described = f"device_description_str: {name}"
    return "\n".join(["gpu_device_info {", *lines, "}", 'platform_name: "CUDA"', version, described, ""])
