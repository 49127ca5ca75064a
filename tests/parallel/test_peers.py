"""A process of a run that is killed: the others end within seconds, with a sentence."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_run import SECTIONS

from ghn_jax.parallel.peers import needing_peers

ROOT = pathlib.Path(__file__).parents[2]
RUN = """
import json, sys, time
from ghn_jax.parallel import peers
from ghn_jax.parallel.processes import connect_processes
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train

if sys.argv[3] == "late":
    leave = peers._Watch._leave
    peers._Watch._leave = lambda *args: (time.sleep(2), leave(*args))
connect_processes()
train(ExperimentConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2])
"""
CONFIG = {
    **SECTIONS,
    "training": {"num_steps": 100_000, "meta_batch_size": 2, "checkpoint_every": 1},
}


def start(workdir, port, index, notice, compiled):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps(CONFIG), str(workdir), notice],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            **compiled,
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        },
    )


def finished(workdir):
    folder = workdir / "checkpoints"
    return [int(p.name) for p in folder.glob("[0-9]*") if p.name.isdecimal()]


# Of the first process's death JAX knows as soon as the watch does; "late" lets JAX be the first.
@pytest.mark.parametrize(
    ("killed", "notice"), [pytest.param(1, "at once", marks=pytest.mark.slow), (0, "late")]
)
def test_a_process_that_is_killed_ends_the_other(tmp_path, killed, notice, compiled):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [start(tmp_path, port, index, notice, compiled) for index in range(2)]
    try:
        deadline = time.monotonic() + 180
        while not any(step >= 2 for step in finished(tmp_path)):
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.1)
        processes[killed].send_signal(signal.SIGKILL)
        start_of_wait = time.monotonic()
        _, errors = processes[1 - killed].communicate(timeout=60)
        assert time.monotonic() - start_of_wait < 15
        step = max(finished(tmp_path))
        sentence = (
            f"error: process {killed} of 2 is gone: step {step} is saved in"
            f" {tmp_path}/checkpoints; start all processes again with the same command to go on\n"
        )
        assert errors.endswith(sentence)
        assert killed == 0 or errors == sentence  # JAX's own lines come before it
        assert ("Terminating process" in errors) == (killed == 0)
        assert processes[1 - killed].returncode == 75
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()


def test_alone_there_is_nothing_to_watch():
    with needing_peers(lambda: "nothing", 75, KeyError):
        pass
    with pytest.raises(ValueError, match="^mine$"):
        with needing_peers(lambda: "nothing", 75, KeyError):
            raise ValueError("mine")
