import itertools
import sys
import time

from ivt_jax.common.progress import progress


def printed(capsys, monkeypatch, seconds, terminal, **options):
    """What is said while four items take `seconds` each, by a clock that goes on whenever one looks."""
    clock = itertools.count(0, seconds)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert list(progress("abcd", 4, "reading: ", "letters", **options)) == list("abcd")
    return capsys.readouterr().err


def test_a_log_gets_a_line_every_ten_seconds(capsys, monkeypatch):
    assert printed(capsys, monkeypatch, 6, terminal=False).splitlines() == [
        "reading: 2 of 4 letters, about 12 s left", "reading: 4 of 4 letters, about 0 s left",
        "reading: 4 letters in 30.0 s",
    ]  # fmt: skip


def test_what_is_quick_says_how_long_it_took_alone(capsys, monkeypatch):
    assert printed(capsys, monkeypatch, 1, terminal=False) == "reading: 4 letters in 5.0 s\n"


def test_a_terminal_has_one_line_that_renews_itself(capsys, monkeypatch):
    *renewed, last = printed(capsys, monkeypatch, 1, terminal=True).split("\r\x1b[2K")[1:]
    assert renewed == [f"reading: {n} of 4 letters, about {4 - n} s left" for n in (1, 2, 3, 4)]
    assert last == "reading: 4 letters in 5.0 s\n"


def test_brief_work_says_nothing_and_leaves_nothing_on_a_terminal(capsys, monkeypatch):
    assert printed(capsys, monkeypatch, 1, terminal=False, brief=True) == ""
    assert printed(capsys, monkeypatch, 1, terminal=True, brief=True).endswith("about 0 s left\r\x1b[2K")
