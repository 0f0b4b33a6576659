"""Time and memory of the compiled forms at ViT-B's size: writing one, and its first use without ivt_jax.

    python -m ivt_jax.benchmarks.export --scratch=DIR      # a folder with some 3 GB free; left as it was

The parameters are random, float32. Writing and using are separate processes; peak is the most memory each held. Using
includes loading, compiling, and embedding two images and two texts; the cosine is the lowest one to the model's own
embeddings. ONNX is skipped if onnx or onnxruntime is not installed.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ivt_jax.common.command import filled_path
from ivt_jax.common.startup import set_xla_flags

LOAD = {
    "stablehlo": """
import jax, pathlib
encode_images, encode_texts = (
    jax.export.deserialize(pathlib.Path(f"{side}_encoder.stablehlo").read_bytes()).call for side in ("image", "text")
)""",
    "saved_model": """
import tensorflow as tf
signatures = tf.saved_model.load(".").signatures
encode_images = lambda images: signatures["encode_images"](images=tf.constant(images))["embeddings"]
text = signatures["encode_texts"]
encode_texts = lambda ids, mask: text(ids=tf.constant(ids), mask=tf.constant(mask))["embeddings"]""",
    "onnx": """
import onnxruntime
image, text = (onnxruntime.InferenceSession(f"{side}_encoder.onnx") for side in ("image", "text"))
encode_images = lambda images: image.run(None, {"images": images})[0]
encode_texts = lambda ids, mask: text.run(None, {"ids": ids, "mask": mask})[0]""",
}
USE = """
import json, resource, time
import numpy as np
given = np.load("../given.npz")
start = time.perf_counter()
{load}
got = np.concatenate([encode_images(given["images"]), encode_texts(given["ids"], given["mask"])])
cost = dict(seconds=time.perf_counter() - start, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
print(json.dumps(dict(cost, cosine=float((got * given["expected"]).sum(1).min()))))
"""


def write(form: str, folder: Path) -> dict[str, float]:
    """Writes one form of a random ViT-B to folder/FORM, and inputs with their embeddings to folder/given.npz.

    Returns seconds and peak GiB of writing the form.
    """
    set_xla_flags()
    import jax
    from flax.traverse_util import unflatten_dict

    from configs import cuhk
    from input_pipeline.tokenizer import load_tokenizer
    from ivt_jax.encoding.embedding import embed_images, embed_texts
    from ivt_jax.export.manifest import Trained
    from ivt_jax.export.run import COMPILED
    from ivt_jax.models.build import build_model, parameter_shapes

    config = cuhk.get_config("release")
    config.model.dtype = "float32"
    model, rng = build_model(config.model), np.random.default_rng(0)
    shapes = parameter_shapes(model.config).items()
    flat = {path: rng.normal(path.endswith("scale"), 0.05, shape).astype(np.float32) for path, shape in shapes}
    params = unflatten_dict(flat, sep="/")
    (folder / form).mkdir()
    start = time.perf_counter()
    COMPILED[form](folder / form, Trained(model, params, config, load_tokenizer()))
    cost = {"seconds": time.perf_counter() - start, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    images = rng.integers(0, 256, (2, *config.model.image_size, 3), np.uint8)
    ids, mask = rng.integers(1, config.model.vocab_size, (2, 32), np.int32), np.ones((2, 32), bool)
    with jax.default_matmul_precision("highest"):
        expected = [embed_images(model, params, [images]), embed_texts(model, params, ids, mask, 2)]
    np.savez(folder / "given.npz", images=images, ids=ids, mask=mask, expected=np.concatenate(expected))
    return cost


def run(command: list[str], folder: Path | None = None) -> dict[str, float]:
    """Runs a command in `folder` and returns the last line of its output, parsed as JSON. Raises RuntimeError."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def measure(form: str, folder: Path) -> str:
    """Writes and uses one form; returns its row of the table."""
    written = run([sys.executable, "-m", "ivt_jax.benchmarks.export", f"--write={form}", f"--scratch={folder}"])
    size = sum(file.stat().st_size for file in (folder / form).rglob("*") if file.is_file()) / 1e6
    used = run([sys.executable, "-c", USE.format(load=LOAD[form])], folder / form)
    row = "| {} | {seconds:.0f} | {peak:.1f} | {:.0f} |".format(form, size, **written)
    return row + " {seconds:.0f} | {peak:.1f} | {:.1e} |".format(1 - used["cosine"], **used)


def main(argv: list[str] | None = None) -> None:
    """Measures every form and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m ivt_jax.benchmarks.export", description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=filled_path, default=None, help="folder of temporary files (default /tmp)")
    parser.add_argument("--write", choices=LOAD, help="write one form into --scratch, print its cost as JSON")
    options = parser.parse_args(argv)
    if options.write:
        return print(json.dumps(write(options.write, options.scratch)))
    print("| form | written in, s | peak, GiB | MB | used in, s | peak, GiB | 1 - cosine |\n" + "|---" * 7 + "|")
    for form in LOAD:
        if form != "onnx" or all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
            with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
                print(measure(form, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
