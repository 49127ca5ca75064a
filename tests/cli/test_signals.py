"""SIGTERM at any moment of a program: real processes, from the first import to the evaluation."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zlib

import pytest
from program_runs import ROOT, run

SMOKE = "--config=launch/configs/smoke.py"


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, f"launch/{program}.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
    )


def catches(process, number):
    """Whether a process has a handler for a signal: mere milliseconds after its start."""
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def is_locked(folder):
    """Whether a process has the folder."""
    try:
        with (folder / "run.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("program", ["train", "evaluate", "finetune", "train_network"])
def test_during_the_import(program):
    process = start(program, "--nonsense")
    wait_for(process, lambda: catches(process, signal.SIGTERM))
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "")
    assert errors == (
        "error: asked to stop (SIGTERM): nothing is to be saved yet; the same command goes on from"
        " there\n"
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_second_run_in_the_folder_and_a_signal_in_the_final_evaluation(tmp_path, cache):
    evaluation = "--config.evaluation.splits=(('test', 200),)"
    flags = (SMOKE, f"--workdir={tmp_path}", f"--config.training.compilation_cache_dir={cache}")
    process = start("train", *flags, evaluation)
    wait_for(process, lambda: is_locked(tmp_path))
    status, output, errors = run("train", *flags, evaluation)
    assert (status, output) == (73, "")
    assert errors.startswith(f"error: {tmp_path} is in use by process {process.pid} on ")
    assert errors.count("\n") == 1

    partial = tmp_path / "evaluation" / "test.partial.jsonl"
    wait_for(process, lambda: partial.exists() and partial.read_text().count("\n") > 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors == (
        f"error: asked to stop (SIGTERM): training has ended and is saved in {tmp_path}, its"
        " evaluation has not; the same command goes on from there\n"
    )
    # The same command makes no step and evaluates no architecture again.
    rows = (tmp_path / "metrics.jsonl").read_bytes()
    lines = partial.read_text().splitlines(keepends=True)
    evaluated = json.loads(lines[1])
    evaluated["num_nodes"] = -1  # recognised below
    del evaluated["crc32"]
    evaluated["crc32"] = zlib.crc32(json.dumps(evaluated).encode())
    partial.write_text(lines[0] + json.dumps(evaluated) + "\n" + "".join(lines[2:]))
    status, _, errors = run("train", *flags, evaluation)
    assert status == 0 and "going on from step 2 of" in errors and errors.count("\n") == 1
    assert (tmp_path / "metrics.jsonl").read_bytes() == rows
    results = [
        json.loads(line) for line in (tmp_path / "evaluation/test.jsonl").read_text().splitlines()
    ]
    assert [result["index"] for result in results] == list(range(200))
    assert results[0]["num_nodes"] == -1 and results[1]["num_nodes"] > 0
    assert not partial.exists()
