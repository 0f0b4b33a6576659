import io
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ivt_jax.training import metrics
from ivt_jax.training.metrics import Progress, ScalarLog, format_seconds, parameter_table
from tests.conftest import needs_tensorflow


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@needs_tensorflow
def test_scalars_go_to_jsonl_and_tensorboard(tmp_path):
    log = ScalarLog(tmp_path, 0, enabled=True)
    log.write(1, {"loss": 2.5})
    log.write(1, {"val/t2i/R1": 50.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5}, {"step": 1, "val/t2i/R1": 50.0}]
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"val/t2i/R1" in events.read_bytes()


@needs_tensorflow
def test_a_resumed_log_drops_what_will_be_written_again_and_a_line_cut_short(tmp_path):
    log = ScalarLog(tmp_path, 0, enabled=True)
    for step in (1, 2, 3, 4):
        log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    ScalarLog(tmp_path, 3, enabled=True).write(4, {"loss": 40.0})
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2, 3, 40]
    assert not list(tmp_path.glob(".*"))


@needs_tensorflow
def test_a_resumed_log_keeps_lines_that_hold_other_line_breaks(tmp_path):
    kept = '{"step": 1, "note": "a\u2028b\x85c"}\n{"step": 2}\n'.encode()
    (tmp_path / "metrics.jsonl").write_bytes(kept + b'{"step": 3}\n')
    ScalarLog(tmp_path, 2, enabled=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
    ScalarLog(tmp_path, 0, enabled=False).write(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


@needs_tensorflow
def test_the_parameter_table_counts_shapes():
    params = {
        "a": {"kernel": jax.ShapeDtypeStruct((20, 30), jnp.float32)},
        "b": jax.ShapeDtypeStruct((7,), jnp.float32),
    }
    table = parameter_table(params)
    assert "a/kernel" in table and "(20, 30)" in table and "Total: 607" in table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.4, "0:09"), (59.6, "1:00"), (75, "1:15"), (3599.7, "1:00:00"), (7384, "2:03:04")],
)
def test_seconds_are_read_as_a_clock(seconds, text):
    assert format_seconds(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for the test."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock.now)
    return clock


def test_throughput_leaves_out_validations_and_the_time_left_does_not(clock):
    stream = io.StringIO()
    progress = Progress(total_steps=50, pairs_per_step=8, stream=stream)
    clock.now += 1000  # compiling
    progress.start(10)  # resumed at step 10
    clock.now += 5
    assert progress.measure(20)["pairs_per_second"] == 16  # 10 steps of 8 pairs in 5 s
    clock.now += 20  # a validation
    progress.resume(20)
    clock.now += 5
    assert progress.measure(30)["pairs_per_second"] == 16
    progress.show(30, {"loss": 1.23456, "mla": 2.0}, 16, 0.124)
    # 20 steps took 30 s in all, so 20 more take as long.
    assert stream.getvalue() == "step 30/50  loss 1.235  mla 2.000  16 pairs/s  input 12%  0:30 left\n"


def test_the_wait_for_input_is_a_share_of_the_time(clock):
    def batches():
        for wait in (100.0, 1.0, 2.0, 0.5):
            clock.now += wait
            yield wait

    progress, seen = Progress(4, 8, io.StringIO()), []
    # The step before is still at work when the third batch has come: nothing waited for that one.
    for batch in progress.timed(batches(), lambda: len(seen) == 2):
        seen.append(batch)
        if batch == 100.0:  # the first wait, and compiling, come before the clocks start
            progress.start(0)
        clock.now += 4
    assert seen == [100.0, 1.0, 2.0, 0.5]
    assert progress.measure(4)["input_wait"] == (1 + 0.5) / (4 * 4 + 1 + 2 + 0.5)
    clock.now += 1
    assert progress.measure(5)["input_wait"] == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_rewrites_one_line_and_a_log_holds_plain_lines(clock):
    for stream, expected in (
        (Terminal(), "\r\x1b[2Kone\r\x1b[2Ktwo\r\x1b[2Kthree\n"),
        (io.StringIO(), "one\ntwo\nthree\n"),
    ):
        progress = Progress(1, 1, stream)
        progress.say("one", transient=True)
        progress.say("two", transient=True)
        progress.say("three")
        assert stream.getvalue() == expected
