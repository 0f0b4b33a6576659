"""A tiny tower with random parameters as a folder of parameters alone, and crops to embed."""

import io
import tarfile

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from configs import synth
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax import embed
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.checkpoint import export_params
from ivt_jax.run.workdir import write_record

SIZE = (14, 10)


def write_model(folder, seed=0):
    config = synth.get_config()
    config.update_from_flattened_dict(
        {"model.image_size": SIZE, "model.patch_size": 6, "model.stride": 4, "model.width": 12, "model.depth": 2,
         "model.num_heads": 3, "model.mlp_ratio": 2.0, "model.max_text_length": 24}
    )  # fmt: skip
    config.text.length.update({"sentence": 24, "phrase": 24, "word": 24})
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(IVTConfig.from_config(config.model))
    params = {path: rng.normal(0, 0.7, shape).astype(np.float32) for path, shape in shapes.items()}
    export_params(folder / "params", unflatten_dict(params, sep="/"))
    write_record(folder, {"config": config.to_dict()}, load_tokenizer())
    return folder


def picture(seed, format="PNG"):
    """The bytes of a crop of noise in broad squares."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 3, 3), np.uint8)
    Image.fromarray(pixels).resize((20, 30), Image.Resampling.NEAREST).save(file, format)
    return file.getvalue()


def write_tar(path, files):
    """files: name -> bytes, in this order."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def gallery(tmp_path):
    """Three archives of three crops, seeds 0 to 8, each with a label beside the crop, not in alphabetical order."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    for number in range(3):
        files = {}
        for seed in (3 * number + 2, 3 * number, 3 * number + 1):
            files |= {f"crop_{seed}.png": picture(seed), f"crop_{seed}.json": b"{}"}
        write_tar(folder / f"{number:03}.tar", files)
    return folder


def call(workdir, gallery, out, *more, pattern="*.tar"):
    return embed.main([f"--workdir={workdir}", f"--shards={gallery}/{pattern}", f"--out={out}", "--batch=1", *more])


def snapshot(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
