"""A tiny tower with random parameters, as a folder of parameters alone, and a run of it with two checkpoints."""

import hashlib
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from configs import synth
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.checkpoint import Checkpoints, export_params
from ivt_jax.run.workdir import record_config, record_conversion
from ivt_jax.training.train_step import TrainState


@pytest.fixture(scope="session")
def config():
    """Overlapping patches, two blocks, the shipped vocabulary."""
    config = synth.get_config()
    config.update_from_flattened_dict(
        {"model.image_size": (14, 10), "model.patch_size": 6, "model.stride": 4, "model.width": 12, "model.depth": 2,
         "model.num_heads": 3, "model.mlp_ratio": 2.0, "model.max_text_length": 24}
    )  # fmt: skip
    config.text.length.update({"sentence": 24, "phrase": 24, "word": 24})
    return config


def random_params(config, seed):
    """Large enough that no two inputs are embedded alike."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(IVTConfig.from_config(config.model))
    return {path: rng.normal(0, 0.7, shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.fixture(scope="session")
def params(config):
    """Path -> array."""
    return random_params(config, 2)


@pytest.fixture(scope="session")
def best(config):
    """Those of the run's best checkpoint."""
    return random_params(config, 1)


@pytest.fixture
def converted(tmp_path, config, params):
    """A folder as `ivt_jax.convert` writes it."""
    folder = tmp_path / "converted"
    folder.mkdir()
    (tmp_path / "vit.npz").write_bytes(b"weights")
    export_params(folder / "params", unflatten_dict(params, sep="/"))
    record_conversion(folder, {"config": config.to_dict()}, "vit", [tmp_path / "vit.npz"], load_tokenizer())
    return folder


@pytest.fixture
def run(tmp_path, config):
    """The workdir of a run: the best checkpoint is that of step 20, of seed 1; the last that of 40, of seed 2."""
    folder = tmp_path / "run"
    (tmp_path / "reid_raw.json").write_text("a")
    record_config(folder, config, {"": tmp_path / "reid_raw.json"}, load_tokenizer())
    checkpoints = Checkpoints(folder)
    for seed, step, score in ((1, 20, 30.0), (2, 40, 10.0)):
        tree = unflatten_dict(random_params(config, seed), sep="/")
        state = TrainState(np.int32(step), tree, (tree, ()), np.int32(0))
        checkpoints.save(step, jax.tree.map(np.asarray, state), {"val/t2i/R1": score})
    checkpoints.close()
    return folder


def assert_files(folder, encoders):
    """The manifest names the encoders, and has the digest of every other file in the folder."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [manifest["encoders"][side]["file"] for side in ("image", "text")] == encoders
    files = {path.name: path for path in folder.iterdir() if path.name != "manifest.json"}
    assert files.keys() == {*encoders, "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert manifest["sha256"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.fixture
def write_summary():
    """write_summary(folder, split, step): as an evaluation writes it, with figures that tell them apart."""

    def write(folder, split, step, **more):
        measures = ("R1", "R5", "R10", "mAP", "mINP")
        ways = {way: {m: 10.0 * w + i for i, m in enumerate(measures)} for w, way in enumerate(("t2i", "i2t"), start=1)}
        interval = {way: {m: [v - 1, v + 1.25] for m, v in values.items()} for way, values in ways.items()}
        summary = {"step": step, **ways, "interval": interval, "queries": 1200, "gallery": 600, "persons": 100, **more}
        (folder / split).mkdir()
        (folder / split / "summary.json").write_text(json.dumps(summary))

    return write
