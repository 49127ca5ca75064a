"""What reaches a worker besides its work: Ctrl-C in the terminal, the choice of a platform."""

import os
import signal
import time

import jax

from ghn_jax.training.workers import Workers


def describe(index):
    if index:
        time.sleep(1)  # at work when the signal comes
    return index, os.getpid(), jax.config.jax_platforms


def test_interrupted_with_the_trainer_works_on(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with Workers(describe, 0, num_workers=1, num_ahead=2, name="numbers") as workers:
        index, pid, platforms = next(workers)
        # Of a worker that imported JAX before it began, too.
        assert (index, platforms) == (0, "cpu")
        time.sleep(0.3)
        os.kill(pid, signal.SIGINT)
        assert [next(workers)[:2], next(workers)[:2]] == [(1, pid), (2, pid)]
