"""The order in which a sweep visits nodes, and the weights of the messages between them.

Nodes are visited in blocks: what a block gets from outside is a few matrix products when it is
entered, and node by node only the messages within it are gathered. A sweep and its adjoint differ
in the direction.
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
    """`size` rows of an array from `start` on, which is within it."""
    return lax.dynamic_slice_in_dim(array, start, size, axis, allow_negative_indices=False)


def _write_rows(array, rows, start):
    indices = (_ZERO, start, _ZERO)
    return lax.dynamic_update_slice(array, rows, indices, allow_negative_indices=False)


class Edges(NamedTuple):
    """Weights of the messages between nodes, computed where they are needed.

    Attributes:
        distance: (B, N, N) uint8.
        virtual_edges: Longest distance.
        is_transposed: Whether rows are the second axis of `distance`.
        dtype: Of weights.
    """

    distance: jax.Array
    virtual_edges: int
    is_transposed: bool
    dtype: Any

    def weights(self, row: jax.Array, column: jax.Array, num_columns: int) -> list[jax.Array]:
        """For each MLP, (B, block, columns): of a block of nodes and the nodes it gets from."""
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
    """The order of visits: block by block, within a block node by node or a few at a time.

    Attributes:
        num_nodes: N, a multiple of the block.
        num_visited: () int32.
        nodes_at_once: How many are visited together.
        is_descending: Whether from the last node to the first.
    """

    num_nodes: int
    num_visited: jax.Array
    nodes_at_once: int
    is_descending: bool

    def visit_all(self, enter: Callable, visit: Callable, carry: PyTree, inputs: PyTree) -> PyTree:
        """Visit all nodes.

        Args:
            enter: From the start of a block and the carry to a tree of (B, block, ...): what its
                nodes know beforehand.
            visit: From the block's part of the carry, and the nodes' rows of what `enter` gave and
                of the inputs, to their rows of the carry.
            carry: Tree of (B, N, F), written.
            inputs: Tree of (B, N, F).

        Returns:
            The carry.
        """
        num_blocks = -(-self.num_visited // BLOCK)

        def visit_block(step, carry):
            start = self._position(step, num_blocks) * BLOCK
            of_block = jax.tree.map(lambda a: read_rows(a, start, BLOCK), inputs)
            of_block = (enter(start, carry), of_block)
            num_steps = jnp.minimum(self.num_visited - start, BLOCK) // self.nodes_at_once

            def visit_nodes(step, own):
                index = self._position(step, num_steps) * self.nodes_at_once
                known = jax.tree.map(lambda a: read_rows(a, index, self.nodes_at_once), of_block)
                written = visit(own, *known)
                return jax.tree.map(lambda a, rows: _write_rows(a, rows, index), own, written)

            own = jax.tree.map(lambda a: read_rows(a, start, BLOCK), carry)
            own = lax.fori_loop(_ZERO, num_steps, visit_nodes, own)
            return jax.tree.map(lambda a, rows: _write_rows(a, rows, start), carry, own)

        return lax.fori_loop(_ZERO, num_blocks, visit_block, carry)

    def sum_over_visited(self, start: jax.Array, add: Callable, total: PyTree) -> PyTree:
        """Sum over the nodes visited before a block: `add(first, size, total)` for each chunk."""
        size = math.gcd(self.num_nodes, _CHUNK)
        first, end = _ZERO, -(-start // size)
        if self.is_descending:
            first, end = start // size, -(-self.num_visited // size)
        # What nodes of a chunk that are not visited yet would give is still zero.
        return lax.fori_loop(first, end, lambda i, total: add(i * size, size, total), total)

    def _position(self, step, num):
        return num - 1 - step if self.is_descending else step
