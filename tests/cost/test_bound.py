import pytest

from configs import synth
from ivt_jax.cost import bound
from ivt_jax.cost.compiled import Compiled, TooLargeError, _memory_figure
from ivt_jax.cost.flops import step_cost
from ivt_jax.cost.topologies import read_topology
from ivt_jax.cost.totals import Collective

# A v5e does 197 TFLOP/s, 819 GB/s of memory, 200 GB/s to other chips.
COLLECTIVES = (Collective("all-gather", 4, 3, 40 * 10**9), Collective("all-reduce", 4, 2, 80 * 10**9))
COMPILED = Compiled(10**9, 2 * 10**9, 394 * 10**12, 1638 * 10**9, COLLECTIVES)
V5E = read_topology("v5e:2x2")


def test_the_slowest_unit_sets_the_bound():
    # Rings send 3/4 of 40 GB to gather, and twice 3/4 of 80 GB to sum: 150 GB.
    found = bound.step_bound(COMPILED, V5E.chip)
    assert found == (2.0, 2.0, pytest.approx(0.75)) and (found.step, found.limit) == (2.0, "products")
    assert bound.step_bound(COMPILED._replace(products=0, traffic=0), V5E.chip).limit == "links"


def test_the_report(monkeypatch):
    monkeypatch.setattr(bound, "compile_config", lambda config, devices: COMPILED)
    config = synth.get_config()
    mfu = 3 * step_cost(config).forward / 4 / (2 * 197e12)
    assert bound.compiled_report(config, V5E, [None] * 4).splitlines() == [
        f"{COMPILED}: fits the 17.2 GB of a v5e",
        "read from and written to that memory: 1638.00 GB a step",
        "| collective | group | per step | MB, full arrays | MB sent by each device |",
        "|---|---|---|---|---|",
        "| all-gather | 4 | 3 | 40,000.00 | 30,000.00 |",
        "| all-reduce | 4 | 2 | 80,000.00 | 120,000.00 |",
        "A step takes at least 2000.00 ms at the published rates of a v5e, limited by its products:",
        "- products 2000.00 ms at 197 TFLOP/s (bfloat16)",
        "- memory 2000.00 ms at 819 GB/s",
        "- links 750.00 ms at 200 GB/s sent by each device",
        f"MFU is at most {mfu:.1%}",
    ]
    cells = bound.plan_cells(config, V5E, [None] * 4)
    assert cells == ["3.00", "yes", "394.00", "1638.0", "150.000", "2000.0", "products", f"{mfu:.0%}"]
    assert len(cells) == len(bound.PLAN_COLUMNS) - 2


def test_what_does_not_fit_is_said(monkeypatch):
    def refuse(config, devices):
        raise TooLargeError("26.86G of 15.75G")

    monkeypatch.setattr(bound, "compile_config", refuse)
    config = synth.get_config()
    assert bound.compiled_report(config, V5E, []) == "does not fit a v5e: its compiler says 26.86G of 15.75G"
    cells = bound.plan_cells(config, V5E, [])
    assert cells[:2] == ["26.86G of 15.75G", "no"] and len(cells) == len(bound.PLAN_COLUMNS) - 2
    large = COMPILED._replace(temporary=17 * 10**9, collectives=())
    monkeypatch.setattr(bound, "compile_config", lambda config, devices: large)  # XLA's compiler for GPUs never refuses
    memory, _, collectives, *_ = bound.compiled_report(config, V5E, [None]).splitlines()
    assert memory.endswith("does not fit the 17.2 GB of a v5e") and collectives == "collectives: none"


@pytest.mark.parametrize(
    ("message", "figure"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (26.86G) exceeds "
         "available HBM (15.75G).", "26.86G of 15.75G"),
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.01G of "
         "15.75G hbm. Exceeded hbm capacity by 4.26G.", "20.01G of 15.75G"),
        ("RESOURCE_EXHAUSTED: something else\nand more", "RESOURCE_EXHAUSTED: something else"),
    ],
)  # fmt: skip
def test_the_figure_of_a_refusal(message, figure):
    assert _memory_figure(message) == figure
