"""Work in several processes."""

import math
import os
import signal

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.common.processes import map_in_processes


def end_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (2, 1), (2, 3)])
def test_results_come_in_order(workers, chunk):
    assert list(map_in_processes(math.isqrt, range(0, 100, 9), workers=workers, chunk=chunk)) == [
        0, 3, 4, 5, 6, 6, 7, 7, 8, 9, 9, 9,
    ]  # fmt: skip


def test_a_process_that_is_killed_ends_the_work_with_a_message():
    with pytest.raises(UserError, match=r"a process was killed.* with fewer --workers than 2$"):
        list(map_in_processes(end_at_three, range(100), workers=2))


def test_an_error_ends_the_work_before_the_other_items():
    results = map_in_processes(math.sqrt, [4, -1, *[4] * 1000], workers=2)
    assert next(results) == 2
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        next(results)
