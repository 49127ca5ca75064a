"""Connect the processes of a run, and build a mesh over all their devices.

The processes find each other by environment variables, which their launcher sets. The mesh has one
axis, "replica", over every device.
"""

import os
import signal
import threading

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ghn_jax.arrays import Array, PyTree
from ghn_jax.parallel.peers import watch_peers

REPLICA_AXIS = "replica"

# Set by whatever starts the processes: a user, Slurm's srun, Open MPI's mpirun, or a TPU pod.
_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_NUM_PROCESSES = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"


def connect_processes() -> None:
    """Connect to the other processes of the run, if there are any, and watch them.

    Call this before anything else asks JAX for its devices. On CPUs, gloo provides the collectives.

    Raises:
        ValueError: If an environment variable holds an invalid number of processes.
    """
    names = [name for name in _NUM_PROCESSES if os.environ.get(name)]
    for name in names:
        if not os.environ[name].isdecimal() or int(os.environ[name]) < 1:
            raise ValueError(
                f"environment variable {name} is {os.environ[name]!r}, expected a number of"
                " processes"
            )
    has_peers = any(int(os.environ[name]) > 1 for name in names)
    has_peers = has_peers or "," in os.environ.get(_TPU_HOSTS, "")
    if not has_peers and not os.environ.get(_COORDINATOR):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    handler = signal.getsignal(signal.SIGTERM)
    jax.distributed.initialize(
        # JAX finds the rest: the coordinator's address in its variable, or all of it from the
        # cluster's own variables.
        num_processes=_integer("JAX_NUM_PROCESSES"),
        process_id=_integer("JAX_PROCESS_ID"),
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # JAX's preemption service has taken it
    watch_peers()


def _integer(name: str) -> int | None:
    value = os.environ.get(name)
    return int(value) if value else None


def replica_mesh(num_local_devices: int | None = None) -> Mesh:
    """Build the mesh of all devices that take part, ordered by process.

    Args:
        num_local_devices: Number of devices to use in each process; None means all of them.

    Returns:
        A mesh with the axis "replica".

    Raises:
        ValueError: If this process has fewer than `num_local_devices` devices.
    """
    local = jax.local_device_count()
    if num_local_devices is not None and num_local_devices > local:
        raise ValueError(
            f"num_devices is {num_local_devices}, expected at most the {local} devices of this"
            " process"
        )
    devices = []
    for process in range(jax.process_count()):
        own = [device for device in jax.devices() if device.process_index == process]
        devices += own[:num_local_devices]
    return jax.make_mesh(
        (len(devices),), (REPLICA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def local_devices(mesh: Mesh) -> list[jax.Device]:
    """Return the devices of a mesh that belong to this process, in the mesh's order."""
    return [d for d in mesh.devices.flat if d.process_index == jax.process_index()]


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of host arrays on every device.

    All processes must pass the same values, which is not checked.

    Args:
        tree: Arrays, but no keys made by `jax.random.key`.
        mesh: The mesh from `replica_mesh`.

    Returns:
        Global arrays, replicated.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    devices = local_devices(mesh)

    def put(leaf: Array) -> jax.Array:
        copies = [jax.device_put(leaf, device) for device in devices]
        return jax.make_array_from_single_device_arrays(copies[0].shape, sharding, copies)

    return jax.tree.map(put, tree)


def local_copy(tree: PyTree, device: jax.Device) -> PyTree:
    """Return one local device's copy of replicated arrays, as arrays on that device alone."""

    def pick(leaf: jax.Array) -> jax.Array:
        return next(s.data for s in leaf.addressable_shards if s.device == device)

    return jax.tree.map(pick, tree)


def stack_replicas(trees: list[PyTree], mesh: Mesh) -> PyTree:
    """Join one tree per local device into global arrays that are sharded along their first axis.

    Args:
        trees: For each local device, in the mesh's order, arrays on it. Corresponding arrays have
            equal shapes (n, ...).
        mesh: The mesh, of R devices.

    Returns:
        Global arrays (R * n, ...), without copying anything.
    """
    sharding = NamedSharding(mesh, PartitionSpec(REPLICA_AXIS))
    num_replicas = mesh.devices.size

    def join(*leaves: jax.Array) -> jax.Array:
        shape = (num_replicas * leaves[0].shape[0], *leaves[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(leaves))

    return jax.tree.map(join, *trees)
