"""The order in which a sweep visits nodes, and the weights of the messages between them.

Nodes are visited in blocks. When a sweep enters a block, a few matrix products compute the messages
from outside of it; then, node by node, only messages from within it are gathered. A sweep and its
adjoint differ in the direction.
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
    """Read `size` rows of an array from `start` on, all of which must lie within it."""
    return lax.dynamic_slice_in_dim(array, start, size, axis, allow_negative_indices=False)


def _write_rows(array: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    indices = (_ZERO, start, _ZERO)
    return lax.dynamic_update_slice(array, rows, indices, allow_negative_indices=False)


class Edges(NamedTuple):
    """The edges between nodes, whose weights are computed when they are needed.

    Attributes:
        distance: (B, N, N) uint8 distances.
        virtual_edges: Longest distance over which messages pass.
        is_transposed: Whether the receivers are the last axis of `distance`.
        dtype: Dtype of the weights.
    """

    distance: jax.Array
    virtual_edges: int
    is_transposed: bool
    dtype: Any

    def weights(self, row: jax.Array, column: jax.Array, num_columns: int) -> list[jax.Array]:
        """Return the weights of the messages that a block of nodes receives.

        Args:
            row: Index of the block's first node.
            column: Index of the first sender.
            num_columns: Number of senders.

        Returns:
            For each MLP, (B, block, senders).
        """
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
    """The order of visits: block by block, and within a block one or a few nodes at a time.

    Attributes:
        num_nodes: Number of nodes, N, a multiple of the block size.
        num_visited: () int32 number of leading nodes to visit.
        nodes_at_once: Number of nodes that are visited together.
        is_descending: Whether nodes are visited from last to first.
    """

    num_nodes: int
    num_visited: jax.Array
    nodes_at_once: int
    is_descending: bool

    def visit_all(self, enter: Callable, visit: Callable, carry: PyTree, inputs: PyTree) -> PyTree:
        """Visit all nodes.

        Args:
            enter: Called as `enter(start, carry)` at the start of a block; returns a tree of
                (B, block, ...), which is what is known of the block's nodes.
            visit: Called as `visit(own, entered, inputs)`, with the block's part of the carry and
                the visited nodes' rows of what `enter` returned and of `inputs`; returns these
                nodes' rows of the carry.
            carry: Tree of (B, N, F) arrays, which the visits overwrite.
            inputs: Tree of (B, N, F) arrays.

        Returns:
            The carry after all visits.
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
        """Sum over the nodes that are visited before a block.

        Args:
            start: Index of the block's first node.
            add: Called as `add(first, size, total)` for each chunk of nodes; returns the new total.
            total: The initial total.

        Returns:
            The total.
        """
        size = math.gcd(self.num_nodes, _CHUNK)
        first, end = _ZERO, -(-start // size)
        if self.is_descending:
            first, end = start // size, -(-self.num_visited // size)
        # Nodes of a chunk that are not visited yet contribute zeros.
        return lax.fori_loop(first, end, lambda i, total: add(i * size, size, total), total)

    def _position(self, step: jax.Array, num: jax.Array) -> jax.Array:
        return num - 1 - step if self.is_descending else step
