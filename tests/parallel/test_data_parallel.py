"""The same seed gives the same losses on any number of devices and processes.

Losses and parameters agree to the order in which float32 gradients are summed.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from small_run import SECTIONS

from ghn_jax.programs.cache import ProgramCache
from ghn_jax.training.checkpoints import load_checkpoint
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train
from ghn_jax.training.trainer import Programs, Trainer

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = {
    **SECTIONS,
    # Plain descent in small steps: Adam would turn a rounding error of a gradient near zero into a
    # whole step, and long steps amplify rounding from one to the next.
    "optimizer": {"name": "sgd", "momentum": 0.0, "learning_rate": 0.01},
    "training": {"num_steps": 3, "meta_batch_size": 8, "log_every": 1, "checkpoint_every": 3},
}
RUN = """
import json, sys
from ghn_jax.parallel.processes import connect_processes
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train

connect_processes()
train(ExperimentConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2])
"""


def make_config(cache, num_devices):
    values = {**CONFIG, "training": {**CONFIG["training"], "num_devices": num_devices}}
    values["training"]["compilation_cache_dir"] = str(cache)
    return values


def losses_and_params(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], load_checkpoint(workdir)[1]


def assert_same(one, other):
    (losses, params), (expected_losses, expected) = one, other
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    for leaf, expected_leaf in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Losses, parameters, and the folder of compiled programs of a run on one device."""
    workdir = tmp_path_factory.mktemp("one")
    config = ExperimentConfig.from_dict(make_config(workdir / "cache", 1))
    trainer, _ = train(config, workdir)
    yield losses_and_params(workdir), workdir / "cache", trainer.programs
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def start(config, workdir, num_devices, **environment):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    return subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps(config), str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, **environment},
    )


def finish(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output


def test_two_devices(one_device, tmp_path):
    expected, cache, programs = one_device
    config = ExperimentConfig.from_dict(make_config(cache, 2))
    targets = programs.targets
    before = targets.num_compilations
    trainer = Trainer(config, programs=Programs(ProgramCache(), targets))
    assert len(trainer.replicas) == 2
    train(config, tmp_path, trainer=trainer)
    # The second device finds its programs in the cache on disk, or puts them there.
    assert targets.num_compilations <= 2 * before
    assert_same(losses_and_params(tmp_path), expected)
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert 0.5 <= metrics["balance"] <= 1


@pytest.mark.parametrize("num_devices", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_more_devices(one_device, tmp_path, num_devices):
    expected, cache, _ = one_device
    finish(start(make_config(cache, num_devices), tmp_path, num_devices))
    assert_same(losses_and_params(tmp_path), expected)


def test_two_processes(one_device, tmp_path):
    expected, cache, _ = one_device
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        start(
            make_config(cache, 1),
            tmp_path,
            1,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    for process in processes:
        finish(process)
    assert_same(losses_and_params(tmp_path), expected)
