"""The recipes for pre-trained models: what each is made of, and a tiny training of each on generated data."""

import json

import jax
import numpy as np
import pytest

from configs import cuhk, icfg, rstp
from configs.starts import STARTS
from input_pipeline.synthetic.writer import Arguments, generate
from input_pipeline.tokenizer import load_tokenizer
from ivt_jax.conversion.clip import DEVIATION, MEAN
from ivt_jax.models.build import build_model
from ivt_jax.run.checkpoint import export_params
from ivt_jax.run.workdir import flatten
from ivt_jax.training import loop
from ivt_jax.training.optimizer import make_schedules
from tests.input_pipeline.test_clip_and_siglip import write_clip, write_siglip

MODULES = (cuhk, icfg, rstp)


@pytest.mark.parametrize("start", STARTS)
def test_the_datasets_have_one_recipe(start):
    """They differ in what says where the data are and, with one tower, in their patches as without a start."""
    first, *others = (flatten(module.get_config(start).to_dict()) for module in MODULES)
    own = {"data.name", "data.root"} | ({"model.stride", "bmm.patch_block"} if start == "vlmo" else set())
    for other in others:
        assert {key for key in first if first[key] != other[key]} <= own


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("start", STARTS)
def test_a_config_opens_with_the_commands_that_fetch_and_convert_its_start(module, start):
    lines, name = module.__doc__.splitlines(), f"configs/{module.__name__[8:]}.py"
    train = next(i for i, line in enumerate(lines) if f"ivt_jax.main --config={name}:{start} " in line)
    assert f"ivt_jax.convert --source={start} " in lines[train - 1]
    assert lines[train - 1].endswith(f"--out={module.get_config(start).train.init_from}")


def test_clip_is_irra_s_recipe_by_hand():
    """REFERENCE, section 8: rates by step with ten steps an epoch; the classifier's bias has five times the rate."""
    config = cuhk.get_config("clip")
    schedules = make_schedules(config, np.arange(61) * 10, 600)
    for name, peak in (("weight", 1e-5), ("bias", 2e-5)):
        np.testing.assert_allclose(schedules[name](50), peak, rtol=1e-5)
        np.testing.assert_allclose(schedules[name](325), peak / 2, rtol=1e-5)  # half of the cosine's 550 steps
        np.testing.assert_allclose(schedules[name](600), 0, atol=1e-12)
    np.testing.assert_allclose(schedules["weight"](0), 1e-6, rtol=1e-5)
    assert (config.optimizer.name, config.optimizer.epsilon, config.optimizer.weight_decay) == ("adam", 1e-3, 4e-5)
    assert config.optimizer.multipliers == ("^id_head/bias=2.5", "^id_head/=5")
    assert (config.match.loss, config.match.temperature, config.id.weight) == ("sdm", 0.02, 1.0)
    assert (config.data.batch_size, config.data.sampling, config.train.epochs) == (64, "uniform", 60)
    assert (config.model.pixel_mean, config.model.pixel_deviation) == (MEAN, DEVIATION)
    assert (config.mla.levels, config.mla.views, config.text.length.sentence) == (("sentence",), 1, 77)
    assert (config.model.image_size, config.model.stride) == ((384, 128), 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("synth") / "data"
    sizes = Arguments(persons=14, images_per_person=2, size=(32, 16), val_persons=3, test_persons=3)
    generate(root, sizes, 1, lambda done, total: None)
    return root


TINY = {
    "data.name": "pedes_synth", "data.batch_size": 8, "data.instances": 2, "augment.pad": 2,
    "text.length.sentence": 12, "text.length.phrase": 12, "text.length.word": 12, "model.image_size": (24, 12),
    "model.patch_size": 6, "model.width": 16, "model.depth": 2, "model.num_heads": 2, "model.max_text_length": 12,
    "model.text.width": 8, "model.text.depth": 2, "model.text.num_heads": 2, "model.dtype": "float32",
    "train.steps": 2, "runtime.log_every": 1, "runtime.eval_batch_size": 8, "evaluation.robustness": False,
}  # fmt: skip
SIZES = {
    "clip": {"model.stride": 6, "model.projection": 8},
    "siglip": {"model.stride": 6, "model.projection": 16},
    "vlmo": {"model.stride": 4, "model.projection": 8},
}
WRITERS = {"clip": write_clip, "siglip": write_siglip}
TERMS = {"clip": {"mla", "id"}, "siglip": {"mla", "id"}, "vlmo": {"mla", "words", "patches"}}


@pytest.mark.parametrize(("module", "start"), [(cuhk, "clip"), (rstp, "siglip"), (icfg, "vlmo")])
def test_a_tiny_start_is_trained_on_generated_data_and_scored(module, start, data, tmp_path):
    """From weights of a square grid, whose positions are resized."""
    config = module.get_config(start)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    config.text.tokenizer = str(WRITERS[start](tokenizer)) if start in WRITERS else ""
    sizes = {**TINY, **SIZES[start], "data.root": str(data), "train.init_from": str(tmp_path / "weights")}
    sizes["model.vocab_size"] = load_tokenizer(config.text.tokenizer).vocab_size
    config.update_from_flattened_dict(sizes)
    taught = config.copy_and_resolve_references()
    taught.model.image_size = (24, 24)
    random = jax.jit(build_model(taught.model).init)(jax.random.key(0))["params"]
    export_params(tmp_path / "weights/params", random)
    (tmp_path / "weights/config.json").write_text(json.dumps({"config": taught.to_dict()}))
    loop.train_and_evaluate(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert len(trained) == 2 and all(np.isfinite(line["loss"]) for line in trained)
    others = {"step", "loss", "grad_norm", "learning_rate", "pairs_per_second", "input_wait"}
    assert set(trained[0]) - others == TERMS[start]
    assert json.loads((tmp_path / "run/test/summary.json").read_text())["last"]["step"] == 2
    table = (tmp_path / "run/parameters.txt").read_text()
    assert ("similarity/log_scale" in table) and ("frozen" in table) == (start != "vlmo")
