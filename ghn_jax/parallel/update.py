"""Average the gradients of all replicas and update the GHN's parameters, in one program.

This is data parallelism over a mesh (`jax.shard_map`): parameters and optimizer state are
replicated, every replica contributes the sum of the gradients of its own architectures, and all
make the same update.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from ghn_jax.arrays import PyTree
from ghn_jax.parallel.processes import REPLICA_AXIS, local_devices, stack_replicas
from ghn_jax.parallel.replica import ReplicaResult
from ghn_jax.programs.cache import compile_lowered


class Totals(NamedTuple):
    """What every process knows after an update.

    Attributes:
        losses: (M,) float32, the loss of each architecture of the meta batch; 0 past the last one.
        finite: (M,) bool, whether each architecture took part in the update.
        norm: Norm of the mean gradient; if it is not finite, the update was discarded.
        stop: Whether any process was asked to stop.
    """

    losses: np.ndarray
    finite: np.ndarray
    norm: float
    stop: bool


class Update:
    """The compiled update of a mesh.

    Args:
        optimizer: The optimizer's transformation of gradients.
        mesh: The mesh from `replica_mesh`.
        meta_batch_size: Maximum number of architectures in a step, M.
    """

    def __init__(
        self, optimizer: optax.GradientTransformation, mesh: Mesh, meta_batch_size: int
    ) -> None:
        self._optimizer = optimizer
        self._mesh = mesh
        self._size = meta_batch_size
        self._program: jax.stages.Compiled | None = None

    def __call__(
        self,
        ghn_params: PyTree,
        opt_state: PyTree,
        results: Sequence[tuple[Sequence[int], ReplicaResult | None]],
        stop: bool = False,
    ) -> tuple[PyTree, PyTree, Totals]:
        """Make one update, together with the other processes.

        Args:
            ghn_params: The GHN's parameters, replicated.
            opt_state: The optimizer's state, replicated.
            results: For each local device of the mesh, the positions of its architectures in the
                meta batch and its result, which is None if it had no work.
            stop: Whether this process was asked to stop.

        Returns:
            The updated parameters and state, both replicated, and the totals. If no architecture is
            finite, or the mean gradient is not, parameters and state are unchanged.
        """
        devices = local_devices(self._mesh)
        grads, columns = [], []
        for device, (positions, result) in zip(devices, results, strict=True):
            # Columns are the loss and whether it is finite; the last row is the request to stop.
            column = np.zeros((self._size + 1, 2), np.float32)
            column[-1] = stop
            if result is not None:
                column[list(positions), 0] = result.losses
                column[list(positions), 1] = result.finite
            columns.append(jax.device_put(column, device))
            own = None if result is None else result.grads
            grads.append(_zeros(ghn_params, device) if own is None else own)
        arguments = (
            ghn_params,
            opt_state,
            stack_replicas(grads, self._mesh),
            stack_replicas(columns, self._mesh),
        )
        if self._program is None:
            self._program = compile_lowered(jax.jit(self._sharded()).lower(*arguments))
        ghn_params, opt_state, table, norm = self._program(*arguments)
        table, norm = np.asarray(table), float(norm)
        losses, finite = table[:-1, 0], table[:-1, 1] > 0
        if not np.isfinite(norm):
            finite = np.zeros_like(finite)
        return ghn_params, opt_state, Totals(losses, finite, norm, bool(table[-1, 0] > 0))

    def _sharded(self) -> Callable[..., tuple]:
        replicated, cut = PartitionSpec(), PartitionSpec(REPLICA_AXIS)

        def update(
            ghn_params: PyTree, opt_state: PyTree, grads: PyTree, column: jax.Array
        ) -> tuple:
            grads, table = jax.lax.psum((grads, column), REPLICA_AXIS)
            count = jnp.sum(table[:-1, 1])
            grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1).astype(g.dtype), grads)
            updates, new_state = self._optimizer.update(grads, opt_state, ghn_params)
            new_params = optax.apply_updates(ghn_params, updates)
            norm = optax.global_norm(grads)
            keep = (count > 0) & jnp.isfinite(norm)

            def choose(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(keep, new, old)

            new_params = jax.tree.map(choose, new_params, ghn_params)
            new_state = jax.tree.map(choose, new_state, opt_state)
            return new_params, new_state, table, norm

        return jax.shard_map(
            update,
            mesh=self._mesh,
            in_specs=(replicated, replicated, cut, cut),
            out_specs=(replicated,) * 4,
        )


def _zeros(tree: PyTree, device: jax.Device) -> PyTree:
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), device), tree)
