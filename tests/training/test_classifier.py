"""A run with a classifier: it trains, resumes and is saved with it; evaluation, export and other runs do not see it."""

import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import safe_open

from ivt_jax.export.run import export
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.checkpoint import Checkpoints, restore_params
from ivt_jax.training import loop
from ivt_jax.training.init_from import initial_params
from ivt_jax.training.program import build_program
from ivt_jax.training.sharding import paths_of
from tests.training.test_loop import tiny_config

PERSONS = 6  # of the training split
CHANGES = {
    "mla.levels": ("sentence",), "mla.views": 1, "bmm.word_weight": 0.0, "bmm.patch_weight": 0.0,
    "model.projection": 4, "match.loss": "sdm", "match.temperature": 0.0, "id.weight": 0.5,
    "optimizer.name": "adam", "optimizer.schedule": "released", "optimizer.ema": 0.5,
    "optimizer.multipliers": ("id_head/bias=2.5", "id_head/=5"), "train.freeze": ("text_embedding/word",),
    "train.steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(pedes_root, tmp_path_factory):
    """A run of one step, then resumed for two more; its states after steps 1 and 3."""
    config, workdir = tiny_config(pedes_root), tmp_path_factory.mktemp("trained") / "run"
    config.update_from_flattened_dict(CHANGES)
    states = []
    for steps in (1, 3):
        config.train.steps = steps
        loop.train_and_evaluate(config, workdir)
        target = build_program(config, np.array([0, 9]), 9, mask_id=4, persons=PERSONS).target
        states.append(jax.tree.map(np.asarray, Checkpoints(workdir).restore(steps, target)))
    return SimpleNamespace(config=config, workdir=workdir, states=states)


def test_the_classifier_of_the_training_persons_is_trained_saved_and_resumed(trained):
    first, last = (state.params["id_head"] for state in trained.states)
    assert last["kernel"].shape == (4, PERSONS) and last["bias"].shape == (PERSONS,)
    for name in ("kernel", "bias"):
        assert (first[name] != last[name]).any()
    lines = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    terms = [line for line in lines if "loss" in line]
    assert len(terms) == 3
    for line in terms:
        assert line["loss"] == pytest.approx(line["mla"] + 0.5 * line["id"], rel=1e-5)
    # At first every class is about as likely: the cross-entropy is that of 6 classes.
    assert terms[0]["id"] == pytest.approx(np.log(PERSONS), rel=1e-2)


def test_frozen_embeddings_are_those_of_the_start(trained):
    first, last = (state.params["text_embedding"] for state in trained.states)
    np.testing.assert_array_equal(first["word"], last["word"])
    assert (first["position"] != last["position"]).any()


def test_the_tables_of_the_run_count_it_and_show_rates(trained):
    table = (trained.workdir / "parameters.txt").read_text()
    rate = dict(re.findall(r"^\| (\S+) .*\| *([^|]*?) *\|$", table, re.M))
    assert rate["id_head/kernel"] == "x 5" and rate["id_head/bias"] == "x 2.5"
    assert rate["text_embedding/word"] == "frozen" and rate["text_embedding/position"] == ""
    total = sum(int(x.size) for x in jax.tree.leaves(trained.states[1].params))
    word = trained.states[1].params["text_embedding"]["word"].size
    assert f"Total: {total:,} -- {4 * total:,} bytes; trained: {total - word:,}" in table
    assert re.search(r"^id_head/kernel\$ +fsdp, - +1 +96 +96 ", (trained.workdir / "sharding.txt").read_text(), re.M)


def test_evaluation_export_and_other_runs_do_not_see_it(trained):
    model = parameter_shapes(IVTConfig.from_config(trained.config.model))
    assert "id_head/kernel" in paths_of(trained.states[1].params)
    for shapes_alone in (False, True):
        restored = restore_params(trained.workdir, best=False, shapes_alone=shapes_alone)
        assert set(paths_of(restored.params)) == set(model)
    average = {path: value for path, value in trained.states[1].ema.items() if path != "id_head"}
    jax.tree.map(np.testing.assert_array_equal, restore_params(trained.workdir, best=False).params, average)
    assert json.loads((trained.workdir / "test/summary.json").read_text())["last"]["step"] == 3
    with safe_open(export(trained.workdir, ["safetensors"]) / "model.safetensors", "numpy") as file:
        assert {name.replace(".", "/") for name in file.keys()} == set(model)  # noqa: SIM118
    other = trained.config.copy_and_resolve_references()
    other.train.init_from = str(trained.workdir)
    other.data.root = "another"
    assert set(initial_params(other).params) == set(model)
