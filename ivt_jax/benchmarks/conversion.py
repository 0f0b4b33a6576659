"""Time and peak memory of `ivt_jax.convert` at ViT-B's size, from each kind of file.

    python -m ivt_jax.benchmarks.conversion --scratch=DIR      # a folder with some 4 GB free; left as it was

The weights are random. Each conversion is a process, measured from its start to the written folder; peak is the most
memory it held. PyTorch's files are skipped if PyTorch is not installed.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs import cuhk
from ivt_jax.common.command import filled_path
from ivt_jax.conversion import bert, clip, release, vit
from ivt_jax.conversion.tensors import shapes as named_shapes
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.workdir import write_record

Shapes = Mapping[str, tuple[int, ...]]
VIT_B = {"D": 768, "F": 3072, "H": 12, "E": 64, "P": 16, "N": 197, "V": 30522, "L": 512, "depth": 12}
OVERLAPPING = 1 + 31 * 10  # positions of the release at 384x128 pixels and stride 12
NAMINGS = {"release": {"release": release.NAMING}, "vit": vit.NAMINGS, "clip": clip.NAMINGS}
CONFIG = cuhk.get_config("release")


class Case(NamedTuple):
    """One conversion: the --source, one of its namings, and the kind of file."""

    source: str
    naming: str
    suffix: str


CASES = (
    Case("release", "release", ".pth"), Case("release", "release", ".safetensors"),
    Case("vit", "timm", ".pth"), Case("vit", "timm", ".safetensors"),
    Case("vit", "google", ".npz"), Case("vit", "transformers", ".safetensors"),
    Case("clip", "openai", ".pth"), Case("clip", "transformers", ".safetensors"),
    Case("export", "our own", ".safetensors"),
)  # fmt: skip


def shapes_of(case: Case) -> Shapes:
    """Returns name -> shape of the tensors in the case's file, at ViT-B's size."""
    if case.source == "export":
        shapes = parameter_shapes(IVTConfig.from_config(CONFIG.model))
        return {path.replace("/", "."): shape for path, shape in shapes.items()}
    positions = OVERLAPPING if case.source == "release" else VIT_B["N"]
    return named_shapes(NAMINGS[case.source][case.naming], {**VIT_B, "N": positions})


def write(path: Path, shapes: Shapes) -> None:
    """Writes random float32 tensors in the format of the suffix; a .pth as the release's checkpoint."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **tensors)  # type: ignore[arg-type]
    else:
        import torch

        state = {f"module.{name}" if "encoder_vl" in name else name: torch.from_numpy(t) for name, t in tensors.items()}
        torch.save({"state_dict": state, "epoch": 60, "best_acc": 0.5}, path)


def measure(case: Case, folder: Path) -> tuple[float, float, float]:
    """Returns MB of the files, seconds and peak GiB of one conversion. Raises RuntimeError if it fails."""
    weights, text = folder / f"weights{case.suffix}", folder / "bert.safetensors"
    write(weights, shapes_of(case))
    write_record(folder, {"config": CONFIG.to_dict()}, None)  # config.json, which --source=export reads
    command = [sys.executable, "-m", "ivt_jax.convert", f"--source={case.source}", f"--weights={weights}"]
    if case.source in ("vit", "clip"):
        write(text, named_shapes(bert.NAMING, VIT_B))
        command += ["--source_text=bert", f"--weights_text={text}"]
    size = sum(file.stat().st_size for file in (weights, text) if file.exists()) / 1e6
    command.append(f"--out={folder / 'out'}")
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:  # a full pipe would stop the command
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        errors.seek(0)
        if status:
            raise RuntimeError(f"{case.naming}, {case.suffix}: {errors.read()}")
    return size, seconds, usage.ru_maxrss / 2**20


def main(argv: list[str] | None = None) -> None:
    """Measures every case and prints a table."""
    flags = argparse.ArgumentParser(prog="python -m ivt_jax.benchmarks.conversion", description=__doc__.splitlines()[0])
    flags.add_argument("--scratch", type=filled_path, default=None, help="folder of temporary files (default /tmp)")
    scratch = flags.parse_args(argv).scratch
    with_torch = importlib.util.find_spec("torch") is not None
    print("| --source | names | file | MB | seconds | peak, GiB |\n|---|---|---|---|---|---|")
    for case in CASES:
        if case.suffix != ".pth" or with_torch:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                size, seconds, peak = measure(case, Path(folder))
            row = f"| {case.source} | {case.naming} | {case.suffix} | {size:.0f} | {seconds:.1f} | {peak:.2f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
