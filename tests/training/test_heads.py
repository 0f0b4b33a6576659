"""A run with all heads: it trains, resumes and is saved with them; evaluation, export, other runs do not see them."""

import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import safe_open

from ivt_jax.export.run import export
from ivt_jax.losses.heads import HEADS
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.run.checkpoint import Checkpoints, restore_params
from ivt_jax.training import loop
from ivt_jax.training.init_from import initial_params
from ivt_jax.training.sharding import paths_of
from tests.training.test_loop import tiny_config

PERSONS = 6  # of the training split
CHANGES = {
    "mla.levels": ("sentence",), "mla.views": 1, "bmm.word_weight": 0.0, "bmm.patch_weight": 0.0,
    "model.projection": 4, "match.loss": "itc", "match.temperature": 0.07, "match.learned": True,
    "id.weight": 0.5, "itm.weight": 0.3,
    "optimizer.name": "adam", "optimizer.schedule": "released", "optimizer.ema": 0.5,
    "optimizer.multipliers": ("id_head/bias=2.5", "id_head/=5"), "train.freeze": ("text_embedding/word",),
    "train.steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(pedes_root, tmp_path_factory):
    """A run of one step, then resumed for two more; its states after steps 1 and 3."""
    config, workdir = tiny_config(pedes_root), tmp_path_factory.mktemp("trained") / "run"
    config.update_from_flattened_dict(CHANGES)
    states, made = [], {}
    build, compile_step = loop.build_program, loop.compile_step
    with pytest.MonkeyPatch.context() as patch:  # one program serves both: rates do not depend on train.steps
        patch.setattr(
            loop, "build_program", lambda *args: made.get("program") or made.setdefault("program", build(*args))
        )
        patch.setattr(
            loop, "compile_step", lambda *args: made.get("step") or made.setdefault("step", compile_step(*args))
        )
        for steps in (1, 3):
            config.train.steps = steps
            loop.train_and_evaluate(config, workdir)
            states.append(jax.tree.map(np.asarray, Checkpoints(workdir).restore(steps, made["program"].target)))
    return SimpleNamespace(config=config, workdir=workdir, states=states)


def test_the_heads_are_trained_saved_and_resumed(trained):
    first, last = ({name: state.params[name] for name in HEADS} for state in trained.states)
    assert last["id_head"]["kernel"].shape == (4, PERSONS) and last["id_head"]["bias"].shape == (PERSONS,)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: (x != y).any(), first, last)))
    lines = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    terms = [line for line in lines if "loss" in line]
    assert len(terms) == 3
    for line in terms:
        assert line["loss"] == pytest.approx(line["mla"] + 0.5 * line["id"] + 0.3 * line["itm"], rel=1e-5)
    # At first every class is about as likely: the cross-entropy is that of 6 classes.
    assert terms[0]["id"] == pytest.approx(np.log(PERSONS), rel=1e-2)
    assert terms[0]["itm"] == pytest.approx(np.log(2), rel=0.1)
    assert terms[0]["temperature"] == pytest.approx(0.07, rel=1e-5) != terms[1]["temperature"]


def test_frozen_embeddings_are_those_of_the_start(trained):
    first, last = (state.params["text_embedding"] for state in trained.states)
    np.testing.assert_array_equal(first["word"], last["word"])
    assert (first["position"] != last["position"]).any()


def test_the_tables_of_the_run_count_them_and_show_rates(trained):
    table = (trained.workdir / "parameters.txt").read_text()
    rate = dict(re.findall(r"^\| (\S+) .*\| *([^|]*?) *\|$", table, re.M))
    assert rate["id_head/kernel"] == "x 5" and rate["id_head/bias"] == "x 2.5"
    assert rate["text_embedding/word"] == "frozen" and rate["text_embedding/position"] == ""
    total = sum(int(x.size) for x in jax.tree.leaves(trained.states[1].params))
    word = trained.states[1].params["text_embedding"]["word"].size
    assert f"Total: {total:,} -- {4 * total:,} bytes; trained: {total - word:,}" in table
    assert re.search(r"^id_head/kernel\$ +fsdp, - +1 +96 +96 ", (trained.workdir / "sharding.txt").read_text(), re.M)


def test_evaluation_and_export_do_not_see_them(trained):
    model = parameter_shapes(IVTConfig.from_config(trained.config.model))
    assert set(HEADS) < trained.states[1].params.keys()
    for shapes_alone in (False, True):
        restored = restore_params(trained.workdir, best=False, shapes_alone=shapes_alone)
        assert set(paths_of(restored.params)) == set(model)
    average = {path: value for path, value in trained.states[1].ema.items() if path not in HEADS}
    jax.tree.map(np.testing.assert_array_equal, restore_params(trained.workdir, best=False).params, average)
    assert json.loads((trained.workdir / "test/summary.json").read_text())["last"]["step"] == 3
    with safe_open(export(trained.workdir, ["safetensors"]) / "model.safetensors", "numpy") as file:
        assert {name.replace(".", "/") for name in file.keys()} == set(model)  # noqa: SIM118


def test_another_run_starts_from_it_without_them_at_another_size_and_stride(trained):
    config = trained.config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {"train.init_from": str(trained.workdir), "data.root": "another", "model.image_size": (60, 24),
         "model.stride": 5, "id.weight": 0.0, "itm.weight": 0.0, "match.learned": False}
    )  # fmt: skip
    initial = initial_params(config)
    assert {path: x.shape for path, x in initial.params.items()} == parameter_shapes(
        IVTConfig.from_config(config.model)
    )
    assert "; resized " in initial.summary
    assert initial.summary.endswith("; dropped the heads of its losses: id_head, itm_head, temperature")
    config.id.weight = 1.0  # its own classifier begins anew
    assert initial_params(config, shapes_alone=True).summary == initial.summary
