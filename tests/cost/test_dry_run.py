import math
import re

import pytest

from configs import cuhk, icfg, joint, rstp, synth
from configs.starts import STARTS
from ivt_jax.common.errors import UserError
from ivt_jax.cost import dry_run
from ivt_jax.cost.compiled import Compiled
from ivt_jax.cost.flops import step_cost
from ivt_jax.cost.plan import device_memory, plan_table, trained_shapes
from ivt_jax.cost.topologies import read_topology
from ivt_jax.training.init_from import Initial

CONFIGS = [(synth, variant) for variant in synth.VARIANTS]
CONFIGS += [(module, variant) for module in (cuhk, icfg, joint, rstp) for variant in ("", "release", *STARTS)]


@pytest.mark.parametrize(("module", "variant"), CONFIGS, ids=[f"{m.__name__[8:]}:{v}" for m, v in CONFIGS])
def test_every_config_is_described_without_data(module, variant):
    config = module.get_config(variant)
    config.data.root = "nowhere"
    text = dry_run.dry_run(config)
    total = int(re.search(r"Total: ([\d,]+)", text)[1].replace(",", ""))
    assert total == sum(map(math.prod, trained_shapes(config).values()))
    assert str(step_cost(config)) in text
    assert str(device_memory(config, {"data": 1, "fsdp": 1})) in text
    assert "\nmesh: data 1 x fsdp 1, " in text
    assert f"name: {config.data.name}" in text and "root: nowhere" in text


def test_the_initial_parameters_are_described(monkeypatch, tmp_path):
    config = synth.get_config()
    monkeypatch.setattr(
        dry_run,
        "initial_params",
        lambda config, shapes_alone: Initial({}, f"parameters from {config.train.init_from}", {}),
    )
    config.train.init_from = str(tmp_path)
    assert f"\nparameters from {tmp_path}\n" in dry_run.dry_run(config)
    config.train.init_from = "weights/x"
    assert dry_run.dry_run(config).endswith("\nnote: train.init_from: weights/x is not there yet; a run needs it")


def test_a_scale_that_is_asked_for_and_frozen_is_noted():
    config = icfg.get_config("clip")
    config.match.temperature = 0.0
    assert "\nnote: match.temperature 0, and train.freeze names similarity/log_scale: " in dry_run.dry_run(config)


def test_the_classifier_and_the_rates_are_described():
    config = icfg.get_config()
    config.id.weight, config.train.freeze = 1.0, ("text_embedding/word$",)
    text = dry_run.dry_run(config)
    assert f"\nid_head: 2,947 persons, {dry_run.ASSUMED}\n" in text
    assert re.search(r"^\| id_head/kernel +\| \(768, 2947\) ", text, re.M)
    assert re.search(r"^\| text_embedding/word +\|.*\| frozen \|$", text, re.M)
    config.train.freeze = ("words$",)
    with pytest.raises(UserError, match=r'^train.freeze: "words\$" matches no parameter'):
        dry_run.dry_run(config)


def test_a_config_at_fault_is_refused():
    config = synth.get_config()
    config.optimizer.name = "lamb"
    with pytest.raises(UserError, match=r'^optimizer.name is "lamb"; expected one of sgd, adam, adamw, muon$'):
        dry_run.dry_run(config)


def test_figures_for_more_devices():
    config = synth.get_config()
    config.runtime.mesh.fsdp = 2
    text = dry_run.dry_run(config, 4)
    assert "\nmesh: data 2 x fsdp 2, " in text
    assert str(device_memory(config, {"data": 2, "fsdp": 2})) in text
    with pytest.raises(UserError, match="does not fit 1 devices"):
        dry_run.dry_run(config)
    with pytest.raises(UserError, match=r"data.batch_size 32 is not a multiple of the 3 devices"):
        dry_run.dry_run(config, 3)


def test_the_plan_says_which_figures_are_formula_and_which_compiled(monkeypatch):
    monkeypatch.setattr(dry_run, "compile_config", lambda config: Compiled(10**9, 2 * 10**9, 5 * 10**12))
    config = synth.get_config()
    table, formula, xla = dry_run.dry_run_plan(config)
    assert table == plan_table(config) and table.startswith("Every figure of this table is by formula")
    assert formula.startswith(
        "\nthe config as given, on this machine's 8 cpu devices:\nmemory per device, by formula: "
    )
    assert xla == (
        "memory per device, compiled: 3.00 GB (state and batch 1.000, temporary 2.000); matrix products 5.000 TFLOPs"
    )
    assert formula.count("by formula") == 1  # float32 is kept as it is: one figure is enough
    config.data.batch_size, config.bmm.rows = 28, 0
    *_, last = dry_run.dry_run_plan(config)
    assert last.endswith("not compiled: data.batch_size 28 is not a multiple of the 8 devices; choose 24 or 32")


def test_dry_run_and_plan_say_why_their_memory_differs(monkeypatch):
    """XLA computes bfloat16 in float32 on a CPU before JAX 0.11, so 2 bytes a number are too few there."""
    monkeypatch.setattr(dry_run, "compile_config", lambda config: Compiled(10**9, 2 * 10**9, 5 * 10**12))
    monkeypatch.setattr(dry_run.jax, "__version_info__", (0, 10, 2))
    config = synth.get_config()
    config.model.dtype = "bfloat16"
    sizes = {"data": 8, "fsdp": 1}
    as_kept, widened = device_memory(config, sizes), device_memory(config, sizes, widened=True)
    assert (as_kept.number, widened.number) == (2, 4) and widened.total > as_kept.total
    assert " GB with activations of 2 bytes a number (" in str(as_kept)
    reason = "The formula is for 8 devices, with activations kept in model.dtype bfloat16."
    text = dry_run.dry_run(config, 8)
    assert text.endswith(f"\n{as_kept}\n{reason} {dry_run.ESTIMATE}")
    _, formula, _ = dry_run.dry_run_plan(config)
    first, why, second, *why_not = formula.splitlines()[2:-1]
    assert first.startswith(f"{as_kept}; matrix products ") and (why, second) == (reason, str(widened))
    assert why_not == [
        "As above, with activations kept in float32.",
        "On a CPU, XLA of JAX before 0.11 keeps some of them so: its own figure is between these two.",
    ]
    monkeypatch.setattr(dry_run.jax, "__version_info__", (0, 11, 2))
    _, formula, _ = dry_run.dry_run_plan(config)
    assert str(as_kept) in formula and str(widened) not in formula


def test_a_topology_takes_the_place_of_the_formula(monkeypatch):
    topology, asked = read_topology("v5e:2x4"), []
    monkeypatch.setattr(dry_run, "topology_devices", lambda topology: asked.append(topology) or [None] * 8)
    monkeypatch.setattr(
        dry_run, "compiled_report", lambda config, *rest: f"a report of {config.data.batch_size}: {rest}"
    )
    config = synth.get_config()
    described, compiling, report = dry_run.dry_run_topology(config, topology)
    assert dry_run.dry_run(config, 8).startswith(f"{described}\nmemory per device, by formula")
    assert "by formula" not in described and asked == [topology]
    assert compiling.startswith("compiling for v5e:2x4, 8 devices")
    assert report == f"a report of 32: {(topology, [None] * 8)}"


def test_the_plan_of_a_topology_compiles_each_row(monkeypatch, capsys):
    def cells(config, topology, devices):
        rows.append((config.model.depth, config.data.batch_size, config.bmm.rows, dict(config.runtime.mesh)))
        return ["1.0"] * (len(dry_run.PLAN_COLUMNS) - 2)

    rows = []
    monkeypatch.setattr(dry_run, "topology_devices", lambda topology: [None] * 128)
    monkeypatch.setattr(dry_run, "plan_cells", cells)
    monkeypatch.setattr(dry_run, "compiled_report", lambda *_: "a report")
    config = synth.get_config()
    config.data.batch_size, config.bmm.rows = 256, 64
    title, header, *lines, last = dry_run.dry_run_topology_plan(config, read_topology("v5e:8x16"))
    assert title.startswith("Compiled for v5e:8x16, 128 devices") and header.count("|") == 2 * (
        len(dry_run.PLAN_COLUMNS) + 1
    )
    # 64 pairs are fewer than the devices, and so are the 64 rows of 256 pairs.
    expected = [(depth, batch) for depth in (12, 24) for batch in (1024, 4096, 16384)]
    mesh = {"data": -1, "fsdp": 1}
    assert rows == [(depth, batch, batch // 4, mesh) for depth, batch in expected]
    assert lines[0].startswith("| ViT-B | 1,024 | 1.0 | ") and lines[-1].startswith("| ViT-L | 16,384 | 1.0 | ")
    reason = "bmm.rows 64 is not a multiple of the 128 devices, which share these rows"
    assert last == f"\nthe config as given: not compiled: {reason}"


def test_the_plan_of_a_topology_ends_with_the_config_as_given(monkeypatch):
    monkeypatch.setattr(dry_run, "topology_devices", lambda topology: [None] * 7)
    monkeypatch.setattr(dry_run, "compiled_report", lambda config, *_: f"a report of {config.data.batch_size}")
    config, topology = synth.get_config(), read_topology("h100:7")  # 7 divides none of the table's batches
    config.data.batch_size, config.bmm.rows = 28, 0
    _, _, last = dry_run.dry_run_topology_plan(config, topology)
    assert last == "\nthe config as given:\na report of 28"
    config.data.batch_size = 32
    _, _, last = dry_run.dry_run_topology_plan(config, topology)
    reason = "data.batch_size 32 is not a multiple of the 7 devices; choose 28 or 35"
    assert last == f"\nthe config as given: not compiled: {reason}"
    config.data.batch_size = 0
    with pytest.raises(UserError, match=r"^data.batch_size is 0; expected "):
        list(dry_run.dry_run_topology_plan(config, topology))
