"""Worker processes: order, errors, and deaths."""

import os
import signal
import time

import pytest

from ghn_jax.training.workers import MAX_RESTARTS, WorkerError, Workers


def square(number):
    return number * number


def fail_at_three(number):
    if number == 3:
        raise ValueError("number is 3, expected another")
    return number


class DieOnce:
    """Kills its process at one argument, the first time."""

    def __init__(self, path, argument):
        self.path, self.argument = path, argument

    def __call__(self, number):
        if number == self.argument and not self.path.exists():
            self.path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


class Count:
    """Notes how many arguments were begun."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, number):
        (self.folder / str(number)).touch()
        return number


def test_results_come_in_order_from_a_start():
    with Workers(square, 5, 2, 4, "squares") as workers:
        assert [next(workers) for _ in range(20)] == [n * n for n in range(5, 25)]
        pids = workers.pids()
        assert 1 <= len(pids) <= 2 and os.getpid() not in pids


def test_an_error_is_raised_where_its_result_would_be():
    with Workers(fail_at_three, 0, 1, 2, "numbers") as workers:
        assert [next(workers) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="^number is 3, expected another"):
            next(workers)


def test_no_more_is_computed_ahead_than_asked_for(tmp_path):
    with Workers(Count(tmp_path), 0, 2, 3, "numbers") as workers:
        for _ in range(2):
            next(workers)
        time.sleep(0.2)
        assert sorted(map(int, os.listdir(tmp_path)))[-1] <= 4


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path, caplog):
    with Workers(DieOnce(tmp_path / "died", 6), 0, 2, 4, "numbers") as workers:
        assert [next(workers) for _ in range(12)] == list(range(12))
    assert "a process that prepares numbers died; starting anew (1 of 3)" in caplog.text


def test_workers_that_die_again_and_again_end_it():
    with Workers(die, 0, 1, 2, "numbers") as workers:
        message = (
            f"^processes that prepare numbers died {MAX_RESTARTS + 1} times .* num_workers = 1"
        )
        with pytest.raises(WorkerError, match=message):
            next(workers)
