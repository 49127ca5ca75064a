"""What a run survives: signals, a full disk, dead workers. Real processes, signals and disks."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from program_runs import run
from small_disk import small_disk
from test_loop import assert_same_end, make_config, make_trainer, read_metrics

from ghn_jax.training.checkpoint_files import finished_steps
from ghn_jax.training.checkpoints import load_checkpoint
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.interruption import StopRequest
from ghn_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of four steps without interruption, saved at the end only."""
    workdir = tmp_path_factory.mktemp("whole")
    config = make_config(training={"num_steps": 4, "checkpoint_every": 100, "log_every": 4})
    trainer, state = train(config, workdir, trainer=make_trainer(config))
    return trainer, state, workdir


WAITS = """
import json, sys, time
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.interruption import RESUME_STATUS, InterruptedRunError
from ghn_jax.training.loop import train

def wait(trainer, state):
    print("reached", state.step, flush=True)
    time.sleep(1)
    return {}

config = ExperimentConfig.from_dict(json.loads(sys.argv[1]))
try:
    train(config, sys.argv[2], evaluate_fn=wait)
except InterruptedRunError as error:
    print(error, flush=True)
    sys.exit(RESUME_STATUS)
"""


def start(script, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_sigterm_saves_and_the_resumed_run_is_the_same_bit_for_bit(whole_run, tmp_path, compiled):
    trainer, expected, expected_workdir = whole_run
    values = trainer.config.to_dict()
    # Away from any multiple of checkpoint_every and of log_every.
    values["training"].update(evaluate_every=2)
    lines = []
    with start(WAITS, json.dumps(values), str(tmp_path), **compiled) as process:
        for line in process.stdout:
            lines.append(line)
            if line == "reached 2\n":
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 75, lines
    folder = tmp_path / "checkpoints"
    assert lines[-1] == (
        f"asked to stop: step 3 of 4 is saved in {folder}; the same command goes on from there\n"
    )
    assert [path.name for path in folder.iterdir()] == ["3"]
    _, state = train(trainer.config, tmp_path, trainer=trainer)
    assert_same_end((state, tmp_path), (expected, expected_workdir))


def test_a_second_signal_is_what_it_was_before():
    calls = []
    previous = signal.signal(signal.SIGTERM, lambda *_: calls.append("previous"))
    try:
        with StopRequest() as request:
            assert not request.is_made
            signal.raise_signal(signal.SIGTERM)
            assert request.is_made and not calls
            signal.raise_signal(signal.SIGTERM)
            assert calls == ["previous"]
        signal.raise_signal(signal.SIGTERM)
        assert calls == ["previous"] * 2
    finally:
        signal.signal(signal.SIGTERM, previous)


BUSY = """
import sys, time
from ghn_jax.training.interruption import StopRequest, exit_on_signals
exit_on_signals("busy")
with StopRequest() as request:
    print("saving", flush=True)
    while not request.is_made:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_program_at_once(second):
    with start(BUSY) as process:
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "noted\n"
        process.send_signal(second)
        assert process.wait(timeout=10) == -second


STUCK = """
import ctypes
from ghn_jax.training.interruption import exit_on_signals
exit_on_signals("nothing is to be saved yet")
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
lock(mutex)
print("stuck", flush=True)
lock(mutex)
"""


def test_a_signal_ends_a_program_within_a_library():
    """As JAX is when it compiles or connects: Python's handlers wait until the call returns."""
    with start(STUCK) as process:
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 75
        assert process.stdout.read() == (
            "error: asked to stop (SIGTERM): nothing is to be saved yet; the same command goes on"
            " from there\n"
        )


FILLS = """
import json, os, pathlib, sys
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train

def fill(trainer, state):
    free = os.statvfs(sys.argv[2])
    size = free.f_bavail * free.f_frsize - 16_000
    pathlib.Path(sys.argv[2], "filler").write_bytes(b"0" * size)
    return {}

config = ExperimentConfig.from_dict(json.loads(sys.argv[1]))
try:
    train(config, sys.argv[2], evaluate_fn=fill)
except ValueError as error:
    print(error, flush=True)
    os._exit(1)
"""


def test_a_full_disk_leaves_the_checkpoint_before(whole_run, tmp_path, compiled):
    trainer, expected, expected_workdir = whole_run
    values = trainer.config.to_dict()
    values["training"].update(checkpoint_every=1, evaluate_every=2)
    with small_disk(tmp_path / "disk", 40_000) as workdir:
        with start(FILLS, json.dumps(values), str(workdir), **compiled) as process:
            lines = process.stdout.read().splitlines()
        assert process.returncode == 1, lines
        folder = workdir / "checkpoints"
        assert lines[-1].startswith(f"a checkpoint could not be written to {folder} (")
        assert lines[-1].endswith(
            "No space left on device); the one of step 1 is whole: make room, then start the same"
            " command again"
        )
        load_checkpoint(workdir)
        # With room again, the same command ends as if nothing had been.
        (workdir / "filler").unlink()
        _, state = train(trainer.config, workdir, trainer=trainer)
        assert_same_end((state, workdir), (expected, expected_workdir))


@pytest.mark.slow
def test_a_full_disk_ends_a_program_in_one_line(tmp_path):
    """The first checkpoint has about 350 KB."""
    smoke = ("train", "--config=launch/configs/smoke.py", "--config.evaluation.splits=()")
    with small_disk(tmp_path / "disk", 600) as disk:
        status, _, errors = run(*smoke, f"--workdir={disk}")
        assert (status, errors) == (
            1,
            f"error: a checkpoint could not be written to {disk}/checkpoints (ValueError: No space"
            " left on device); the one of step 1 is whole: make room, then start the same command"
            " again\n",
        )
        assert finished_steps(disk / "checkpoints") == [1]
        load_checkpoint(disk)


def test_worker_processes_change_nothing(whole_run, tmp_path):
    trainer, expected, expected_workdir = whole_run
    values = trainer.config.to_dict()
    values["training"].update(num_workers=1)
    config = ExperimentConfig.from_dict(values)
    _, state = train(config, tmp_path, trainer=make_trainer(config))
    assert_same_end((state, tmp_path), (expected, expected_workdir))


def test_skipped_architectures_are_listed_in_a_file(tmp_path, monkeypatch):
    from test_loop import spoil_predictions

    spoil_predictions(monkeypatch, lambda index: index in (1, 2))
    config = make_config(training={"num_steps": 2, "max_skipped_share": 1.0})
    train(config, tmp_path, trainer=make_trainer(config))
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "index": 1, "seed": 0}, {"step": 2, "index": 2, "seed": 0}]
    assert [row["skipped"] for row in read_metrics(tmp_path)] == [1, 2]
    assert all(0 <= row["waiting_share"] < 1 for row in read_metrics(tmp_path))
    assert np.isfinite(read_metrics(tmp_path)[0]["loss"])
