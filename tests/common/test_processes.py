"""Work in several processes."""

import functools
import math
import os
import signal
import time

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.common.processes import map_in_processes


class UnreadableError(Exception):
    """It can be pickled, and not read again."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def end_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def touch(folder, number):
    """Fails for the third item."""
    (folder / str(number)).touch()
    time.sleep(0.01)
    return 1 / (number - 2)


def fail(number):
    raise UnreadableError(number, number)


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (2, 1), (2, 5)])
def test_results_come_in_order(workers, chunk):
    numbers = range(12)
    assert list(map_in_processes(math.dist, *[[[n] for n in numbers], [[0]] * 12], workers=workers, chunk=chunk)) == [
        *numbers
    ]


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_process_that_is_killed_ends_the_work_with_a_message(chunk):
    """Also if much is left to do: a Pool waits for the lost result, and so does an Executor's `map`."""
    with pytest.raises(UserError, match=r"^a process has ended unexpectedly.* with fewer --workers than 2$"):
        list(map_in_processes(end_at_three, range(100_000), workers=2, chunk=chunk))


def test_after_an_error_few_other_items_are_worked_on(tmp_path):
    with pytest.raises(ZeroDivisionError):
        list(map_in_processes(functools.partial(touch, tmp_path), range(1000), workers=2))
    assert len([*tmp_path.iterdir()]) <= 10


def test_after_an_early_end_few_other_items_are_worked_on(tmp_path):
    results = map_in_processes(functools.partial(touch, tmp_path), range(1000), workers=2)
    assert next(results) == -0.5
    results.close()
    assert len([*tmp_path.iterdir()]) <= 10


def test_an_answer_that_cannot_be_read_is_no_lack_of_memory():
    with pytest.raises(Exception, match=r"terminated abruptly|deserialize|un-serialize") as raised:
        list(map_in_processes(fail, range(10), workers=2))
    assert not isinstance(raised.value, UserError)
