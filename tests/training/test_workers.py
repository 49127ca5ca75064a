"""Worker processes: order, errors, and deaths."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from ghn_jax.training import workers as workers_module
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


class Large:
    """More than fits into a pipe, to be sent and to come back."""

    def __init__(self):
        self.values = np.arange(300_000, dtype=np.float64)

    def __call__(self, number):
        return self.values + number


def test_killed_at_any_moment_again_and_again_ends_it():
    """At their start and in the middle of results, by another process than the trainer."""
    with Workers(Large(), 0, 2, 4, "arrays") as workers:
        assert (next(workers)[:3] == [0, 1, 2]).all()
        is_over = threading.Event()

        def kill_all():
            while not is_over.wait(0.05):
                for pid in workers.pids():
                    os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_all)
        start = time.monotonic()
        killer.start()
        try:
            with pytest.raises(WorkerError, match="died 4 times .the last one by signal SIGKILL"):
                for _ in range(100):
                    next(workers)
        finally:
            is_over.set()
            killer.join()
    assert time.monotonic() - start < 60
    assert not workers.pids() or not any(map(is_alive, workers.pids()))


def is_alive(pid):
    return os.path.exists(f"/proc/{pid}")


def test_a_stopped_worker_is_named_and_replaced(monkeypatch, caplog):
    monkeypatch.setattr(workers_module, "STOPPED_SECONDS", 2)
    with Workers(slow_square, 0, 1, 1, "squares") as workers:
        assert next(workers) == 0
        (pid,) = workers.pids()
        os.kill(pid, signal.SIGSTOP)
        assert [next(workers) for _ in range(3)] == [1, 4, 9]
        assert workers.pids() != [pid]
    assert caplog.messages == [
        f"process {pid}, which prepares squares, has been stopped (SIGSTOP) for 2 s and is killed",
        "a process that prepares squares died; starting anew (1 of 3)",
    ]


def slow_square(number):
    time.sleep(0.1)
    return number * number


def test_closing_does_not_wait_for_a_stopped_worker():
    workers = Workers(slow_square, 0, 1, 1, "squares")
    assert next(workers) == 0
    os.kill(workers.pids()[0], signal.SIGSTOP)
    start = time.monotonic()
    workers.close()
    assert time.monotonic() - start < 5
