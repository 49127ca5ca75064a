"""What the environment says about other processes, and arrays that all devices hold."""

import jax
import numpy as np
import pytest

from ghn_jax.parallel.processes import (
    connect_processes,
    local_copy,
    local_devices,
    replica_mesh,
    replicate,
    stack_replicas,
)


@pytest.fixture
def environment(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_alone_nothing_is_connected(environment):
    environment.setenv("SLURM_STEP_NUM_TASKS", "1")
    connect_processes()
    assert jax.process_count() == 1


def test_a_number_of_processes_that_is_none(environment):
    environment.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="^environment variable JAX_NUM_PROCESSES is 'two', exp"):
        connect_processes()


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match="^num_devices is 3, expected at most the 2 devices of"):
        replica_mesh(3)


def test_replicas_hold_copies_and_stacks_are_cut():
    mesh = replica_mesh()
    first, second = local_devices(mesh)
    copies = replicate({"a": np.arange(3.0, dtype=np.float32)}, mesh)
    on_second = local_copy(copies, second)["a"]
    assert on_second.devices() == {second} and on_second.tolist() == [0, 1, 2]
    parts = [jax.device_put(np.full(2, k, np.float32), d) for k, d in ((1, first), (2, second))]
    assert np.asarray(stack_replicas(parts, mesh)).tolist() == [1, 1, 2, 2]
