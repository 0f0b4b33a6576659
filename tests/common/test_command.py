"""How commands end: the exit code, and what is said of it."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from ivt_jax.common.command import exit_code
from ivt_jax.common.errors import DataError


def test_what_the_work_returns_is_the_exit_code(capsys):
    assert (exit_code(lambda: 1), exit_code(lambda: None)) == (1, 0)
    assert capsys.readouterr() == ("", "")


def failing(error):
    def work():
        raise error

    return work


def test_a_mistake_is_one_line(capsys):
    assert exit_code(failing(DataError("a.csv: line 3 is\x1b[1m malformed\n"))) == 2
    assert capsys.readouterr() == ("", "error: a.csv: line 3 is\\x1b[1m malformed\\n\n")


def test_a_full_disk_is_a_mistake_and_any_other_error_is_not(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/file")
    assert exit_code(failing(full)) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: '/data/file'\n"
    assert exit_code(failing(FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere"))) == 2
    assert capsys.readouterr().err == "error: [Errno 2] No such file or directory: '/nowhere'\n"
    for error in (OSError(errno.EIO, "Input/output error"), ValueError("a fault of the program")):
        with pytest.raises(type(error)) as raised:
            exit_code(failing(error))
        assert raised.value is error


WORK = """
import signal, sys
from ivt_jax.common.command import exit_code

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us may have had it ignored

def work():
    print("begun", flush=True)
    {}

sys.exit(exit_code(work))
"""


def start(body, **options):
    command = [sys.executable, "-c", WORK.format(body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_is_told_without_a_traceback():
    with start("import time; time.sleep(600)") as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stderr.read()) == (130, "interrupted\n")


def test_who_has_no_stdout_or_no_letters_is_served():
    with start("print('a · b')", env={**os.environ, "PYTHONIOENCODING": "ascii"}) as process:
        assert (process.wait(60), process.stdout.read()) == (0, "begun\na \\xb7 b\n")
    command = f"{sys.executable} -c 'from ivt_jax.common.command import exit_code; exit(exit_code(lambda: 3))' >&-"
    assert subprocess.run(command, shell=True, capture_output=True).returncode == 3


@pytest.mark.parametrize("flush", [True, False])
def test_who_is_not_read_any_more_ends_in_silence(flush):
    with start(f"sys.stdin.read(1); print('more', flush={flush})", stdin=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write("x")
        process.stdin.close()
        assert (process.wait(60), process.stderr.read()) == (141, "")
