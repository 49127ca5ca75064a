"""The order in which a sweep visits nodes, and the weights of the messages between them.

Nodes are visited in blocks. The messages that a block receives from outside are computed by a few
matrix products when it is entered; then, node by node, only the messages within it are gathered. A
sweep and its adjoint differ in direction.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ghn_jax.arrays import PyTree

BLOCK = 32  # nodes
_CHUNK = 128  # nodes, a multiple of the block
_ZERO: Any = np.int32(0)


def read_rows(array: jax.Array, start: Any, size: int, axis: int = 1) -> jax.Array:
    """Read `size` rows of an array from row `start` on, all of which it has."""
    return lax.dynamic_slice_in_dim(array, start, size, axis, allow_negative_indices=False)


def _write_rows(array: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    indices = (_ZERO, start, _ZERO)
    return lax.dynamic_update_slice(array, rows, indices, allow_negative_indices=False)


class Edges(NamedTuple):
    """Weights of the messages between nodes, computed where they are needed.

    Attributes:
        distance: (B, N, N) uint8.
        virtual_edges: Longest distance over which an edge passes messages.
        is_transposed: Whether rows are the last axis of `distance`, not the one before it.
        dtype: The weights' dtype.
    """

    distance: jax.Array
    virtual_edges: int
    is_transposed: bool
    dtype: Any

    def weights(self, row: jax.Array, column: jax.Array, num_columns: int) -> list[jax.Array]:
        """Return (B, block, columns) weights for each MLP, for a block and its senders."""
        cuts = ((row, BLOCK), (column, num_columns))
        (first, num_first), (second, num_second) = cuts[::-1] if self.is_transposed else cuts
        distance = read_rows(read_rows(self.distance, first, num_first), second, num_second, axis=2)
        if self.is_transposed:
            distance = distance.swapaxes(1, 2)
        weights = [(distance == 1).astype(self.dtype)]
        if self.virtual_edges > 1:
            inverse = 1 / jnp.maximum(distance, 1).astype(self.dtype)
            reaches = (distance > 0) & (distance <= self.virtual_edges)
            weights.append(jnp.where(reaches, inverse, jnp.zeros_like(inverse)))
        return weights


class Visits(NamedTuple):
    """The order of visits: block by block, and within a block one node or a few at a time.

    Attributes:
        num_nodes: Number of nodes N, a multiple of the block.
        num_visited: () int32, number of nodes visited.
        nodes_at_once: Number of nodes visited together.
        is_descending: Whether visits go from the last node to the first.
    """

    num_nodes: int
    num_visited: jax.Array
    nodes_at_once: int
    is_descending: bool

    def visit_all(self, enter: Callable, visit: Callable, carry: PyTree, inputs: PyTree) -> PyTree:
        """Visit all nodes.

        Args:
            enter: Maps a block's start and the carry to a tree of (B, block, ...), what the block's
                nodes know beforehand.
            visit: Maps the block's part of the carry, and the visited nodes' rows of `enter`'s
                result and of the inputs, to those nodes' new rows of the carry.
            carry: Tree of (B, N, F) that the visits update.
            inputs: Tree of (B, N, F) that they only read.

        Returns:
            The carry after the last visit.
        """
        num_blocks = -(-self.num_visited // BLOCK)

        def visit_block(step: jax.Array, carry: PyTree) -> PyTree:
            start = self._position(step, num_blocks) * BLOCK
            of_block = jax.tree.map(lambda a: read_rows(a, start, BLOCK), inputs)
            of_block = (enter(start, carry), of_block)
            num_steps = jnp.minimum(self.num_visited - start, BLOCK) // self.nodes_at_once

            def visit_nodes(step: jax.Array, own: PyTree) -> PyTree:
                index = self._position(step, num_steps) * self.nodes_at_once
                known = jax.tree.map(lambda a: read_rows(a, index, self.nodes_at_once), of_block)
                written = visit(own, *known)
                return jax.tree.map(lambda a, rows: _write_rows(a, rows, index), own, written)

            own = jax.tree.map(lambda a: read_rows(a, start, BLOCK), carry)
            own = lax.fori_loop(_ZERO, num_steps, visit_nodes, own)
            return jax.tree.map(lambda a, rows: _write_rows(a, rows, start), carry, own)

        return lax.fori_loop(_ZERO, num_blocks, visit_block, carry)

    def sum_over_visited(self, start: jax.Array, add: Callable, total: PyTree) -> PyTree:
        """Sum over the nodes visited before a block, by `add(first, size, total)` on each chunk."""
        size = math.gcd(self.num_nodes, _CHUNK)
        first, end = _ZERO, -(-start // size)
        if self.is_descending:
            first, end = start // size, -(-self.num_visited // size)
        # A chunk may hold nodes that are not visited yet; they still contribute zero.
        return lax.fori_loop(first, end, lambda i, total: add(i * size, size, total), total)

    def _position(self, step: jax.Array, num: jax.Array) -> jax.Array:
        return num - 1 - step if self.is_descending else step
