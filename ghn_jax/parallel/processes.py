"""Find the other processes of a run, and the devices of all of them.

In: what the launcher of the processes put into the environment. Out: JAX's runtime connected to its
peers, and a mesh with one axis, "replica", over every device.
"""

import os

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

REPLICA_AXIS = "replica"

# Set by whatever starts the processes: by hand, by Slurm's srun, by Open MPI's mpirun, on TPU pods.
_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_NUM_PROCESSES = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"


def connect_processes() -> None:
    """Connect to the other processes of the run, where there are any.

    To be called before anything else asks JAX for its devices. On CPUs the collectives are gloo's.

    Raises:
        ValueError: If a number of processes is given that is none.
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
    jax.distributed.initialize(
        # JAX finds the rest: the coordinator in its variable, or all of it from the cluster.
        num_processes=_integer("JAX_NUM_PROCESSES"),
        process_id=_integer("JAX_PROCESS_ID"),
    )


def _integer(name: str) -> int | None:
    value = os.environ.get(name)
    return int(value) if value else None


def replica_mesh(num_local_devices: int | None = None) -> Mesh:
    """The mesh of all devices that take part, process by process.

    Args:
        num_local_devices: How many devices of each process; None is all of them.

    Returns:
        A mesh with the axis "replica".

    Raises:
        ValueError: If a process has fewer devices.
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
    """The devices of a mesh that belong to this process, in the mesh's order."""
    return [d for d in mesh.devices.flat if d.process_index == jax.process_index()]


def replicate(tree, mesh: Mesh):
    """Put a copy of host arrays on every device: the same on all processes, which is not checked.

    Args:
        tree: Arrays; keys made by `jax.random.key` are not among them.
        mesh: Of `replica_mesh`.

    Returns:
        Global arrays, replicated.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    devices = local_devices(mesh)

    def put(leaf):
        copies = [jax.device_put(leaf, device) for device in devices]
        return jax.make_array_from_single_device_arrays(copies[0].shape, sharding, copies)

    return jax.tree.map(put, tree)


def local_copy(tree, device: jax.Device):
    """What one local device holds of replicated arrays: arrays of that device alone."""

    def pick(leaf):
        return next(s.data for s in leaf.addressable_shards if s.device == device)

    return jax.tree.map(pick, tree)


def stack_replicas(trees: list, mesh: Mesh):
    """Join one tree per local device into global arrays whose first axis is cut over replicas.

    Args:
        trees: For each local device of the mesh in its order, arrays on it; equal shapes (n, ...).
        mesh: Of R devices.

    Returns:
        Global arrays (R * n, ...); nothing is copied.
    """
    sharding = NamedSharding(mesh, PartitionSpec(REPLICA_AXIS))
    num_replicas = mesh.devices.size

    def join(*leaves):
        shape = (num_replicas * leaves[0].shape[0], *leaves[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(leaves))

    return jax.tree.map(join, *trees)
