"""A sweep of sequential message passing over the nodes of graphs, and its adjoint.

In: node states, distances, the MLPs of the messages, the GRU. Out: the states after every node has,
in topological order or against it, gathered what the nodes before it send and updated its state.

A message depends only on its sender, so each MLP runs once per node instead of once per edge. Nodes
are visited in blocks: what a block gets from outside is a few matrix products when it is entered,
and node by node only the messages within it are gathered. The gradient is a sweep of the same kind
the other way around; letting JAX derive it would carry a (B, N, D) cotangent through every step.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ghn_jax.hypernetworks.message_passing.node_update import (
    apply_gates,
    gates_from_message,
    gates_from_state,
    gru_cell,
    hidden_layer,
    join_mlps,
    output_layer,
    send_message,
    slopes,
)

PyTree = Any
_BLOCK = 32  # nodes
_CHUNK = 128  # nodes, a multiple of the block
_ZERO: Any = np.int32(0)


class Sweep(NamedTuple):
    """What kind of sweep.

    Attributes:
        virtual_edges: Longest distance of an edge that passes messages; 1 means the network's own.
        is_reverse: Whether messages go against the edges, and nodes are visited from the last.
        nodes_at_once: How many consecutive nodes of each graph are visited together, a divisor of
            32. No edge may join two of them.
    """

    virtual_edges: int
    is_reverse: bool
    nodes_at_once: int = 1


def sweep(
    kind: Sweep,
    mlps: Sequence[dict[str, jax.Array]],
    gru: dict[str, jax.Array],
    x: jax.Array,
    distance: jax.Array,
    num_visited: jax.Array,
) -> jax.Array:
    """Visit the nodes of B graphs in parallel, one or a few of each graph at a time.

    Args:
        kind: Of sweep.
        mlps: Of the messages along the network's edges, and of those along virtual edges if there
            are any: `kernel_1` (D, H), `bias_1`, `kernel_2` (H, D), `bias_2`.
        gru: `message_kernel` and `state_kernel` (D, 3 D), `message_bias` and `state_bias`.
        x: (B, N, D) states, nodes in topological order.
        distance: (B, N, N) uint8 [receiver, sender], 0 where there is no edge.
        num_visited: () int32, how many of the first nodes are visited; rounded up to
            `nodes_at_once`.

    Returns:
        (B, N, D); nodes that are not visited keep their state.

    Raises:
        ValueError: If `nodes_at_once` does not divide 32.
    """
    if kind.nodes_at_once < 1 or _BLOCK % kind.nodes_at_once:
        raise ValueError(f"nodes_at_once is {kind.nodes_at_once}, expected a divisor of {_BLOCK}")
    num_visited = -(-num_visited // kind.nodes_at_once) * kind.nodes_at_once
    num_nodes = x.shape[1]
    missing = -num_nodes % _BLOCK
    if missing:
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
        distance = jnp.pad(distance, ((0, 0), (0, missing), (0, missing)))
    return _sweep(kind, list(mlps), gru, x, distance, num_visited)[:, :num_nodes]


def _rows(array, start, size, axis=1):
    return lax.dynamic_slice_in_dim(array, start, size, axis, allow_negative_indices=False)


def _with_rows(array, rows, start):
    indices = (_ZERO, start, _ZERO)
    return lax.dynamic_update_slice(array, rows, indices, allow_negative_indices=False)


class _Edges(NamedTuple):
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
        cuts = ((row, _BLOCK), (column, num_columns))
        (first, num_first), (second, num_second) = cuts[::-1] if self.is_transposed else cuts
        distance = _rows(_rows(self.distance, first, num_first), second, num_second, axis=2)
        if self.is_transposed:
            distance = distance.swapaxes(1, 2)
        weights = [(distance == 1).astype(self.dtype)]
        if self.virtual_edges > 1:
            inverse = 1 / jnp.maximum(distance, 1).astype(self.dtype)
            reaches = (distance > 0) & (distance <= self.virtual_edges)
            weights.append(jnp.where(reaches, inverse, jnp.zeros_like(inverse)))
        return weights


class _Visits(NamedTuple):
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

    def run(self, enter: Callable, visit: Callable, arrays: PyTree, inputs: PyTree) -> PyTree:
        """Visit all nodes.

        Args:
            enter: From the start of a block and the arrays to a tree of (B, block, ...): what its
                nodes know beforehand.
            visit: From the block's part of the arrays, and the nodes' rows of what `enter` gave and
                of the inputs, to their rows of the arrays.
            arrays: Tree of (B, N, F), written.
            inputs: Tree of (B, N, F).

        Returns:
            The arrays.
        """
        num_blocks = -(-self.num_visited // _BLOCK)

        def visit_block(step, arrays):
            start = self._position(step, num_blocks) * _BLOCK
            of_block = jax.tree.map(lambda a: _rows(a, start, _BLOCK), inputs)
            of_block = (enter(start, arrays), of_block)
            num_steps = jnp.minimum(self.num_visited - start, _BLOCK) // self.nodes_at_once

            def visit_nodes(step, own):
                index = self._position(step, num_steps) * self.nodes_at_once
                known = jax.tree.map(lambda a: _rows(a, index, self.nodes_at_once), of_block)
                written = visit(own, *known)
                return jax.tree.map(lambda a, rows: _with_rows(a, rows, index), own, written)

            own = jax.tree.map(lambda a: _rows(a, start, _BLOCK), arrays)
            own = lax.fori_loop(_ZERO, num_steps, visit_nodes, own)
            return jax.tree.map(lambda a, rows: _with_rows(a, rows, start), arrays, own)

        return lax.fori_loop(_ZERO, num_blocks, visit_block, arrays)

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sweep(kind, mlps, gru, x, distance, num_visited):
    return _sweep_fwd(kind, mlps, gru, x, distance, num_visited)[0]


def _sweep_fwd(kind, mlps, gru, x, distance, num_visited):
    edges = _Edges(distance, kind.virtual_edges, kind.is_reverse, x.dtype)
    visits = _Visits(x.shape[1], num_visited, kind.nodes_at_once, kind.is_reverse)
    mlp, num_mlps = join_mlps(mlps), len(mlps)

    def gather(weights, sent):
        return sum(jnp.matmul(w, s) for w, s in zip(weights, sent, strict=True))

    def enter(start, arrays):
        sent = arrays[0]

        def add(first, size, total):
            of_chunk = [_rows(s, first, size) for s in sent]
            return total + gather(edges.weights(start, first, size), of_chunk)

        outside = jnp.zeros((x.shape[0], _BLOCK, x.shape[2]), x.dtype)
        outside = visits.sum_over_visited(start, add, outside)
        return outside, edges.weights(start, start, _BLOCK)

    def visit(own, known, inputs):
        (sent, _, _), (outside, weights), (x, from_state) = own, known, inputs
        message = outside + gather(weights, sent)
        state = apply_gates(gates_from_message(gru, message), from_state, x)
        return jnp.split(send_message(mlp, state), num_mlps, axis=-1), state, message

    zeros = jnp.zeros_like(x)
    arrays = ([zeros] * num_mlps, x, zeros)
    _, h, m = visits.run(enter, visit, arrays, (x, gates_from_state(gru, x)))
    return h, (mlps, gru, x, distance, num_visited, h, m)


def _sweep_bwd(kind, residuals, dh):
    mlps, gru, x, distance, num_visited, h, m = residuals
    edges = _Edges(distance, kind.virtual_edges, not kind.is_reverse, x.dtype)
    visits = _Visits(x.shape[1], num_visited, kind.nodes_at_once, not kind.is_reverse)
    mlp, num_mlps = join_mlps(mlps), len(mlps)
    # The sweep is linear in the cotangents: what the states decide is computed for all nodes ahead.
    from_state, hidden = gates_from_state(gru, x), hidden_layer(mlp, h)
    inputs = (
        dh,
        slopes(lambda a: apply_gates(a, from_state, x), gates_from_message(gru, m)),
        slopes(jax.nn.relu, hidden),
        slopes(jax.nn.relu, output_layer(mlp, hidden)),
    )

    def enter(start, arrays):
        dm = arrays[0]

        def add(first, size, totals):
            of_chunk = _rows(dm, first, size)
            weights = edges.weights(start, first, size)
            return [t + jnp.matmul(w, of_chunk) for t, w in zip(totals, weights, strict=True)]

        outside = [jnp.zeros((x.shape[0], _BLOCK, x.shape[2]), x.dtype)] * num_mlps
        outside = visits.sum_over_visited(start, add, outside)
        return outside, edges.weights(start, start, _BLOCK)

    def visit(own, known, inputs):
        (dm, _, _), (outside, weights) = own, known
        dh_node, gate_slope, hidden_slope, output_slope = inputs
        # What the receivers of this node's messages send back.
        d_sent = [o + jnp.matmul(w, dm) for o, w in zip(outside, weights, strict=True)]
        d_sent = jnp.concatenate(d_sent, axis=-1)
        d_hidden = jnp.matmul(d_sent * output_slope, mlp["kernel_2"].T) * hidden_slope
        dh_node = dh_node + jnp.matmul(d_hidden, mlp["kernel_1"].T)
        d_gates = jnp.concatenate([dh_node] * 3, axis=-1) * gate_slope
        return jnp.matmul(d_gates, gru["message_kernel"].T), dh_node, d_sent

    zeros = jnp.zeros_like(x)
    arrays = (zeros, dh, jnp.concatenate([zeros] * num_mlps, axis=-1))
    _, d_states, d_sent = visits.run(enter, visit, arrays, inputs)
    # Gradients of the parameters and of the states before the sweep, all nodes at once. Nodes that
    # are not visited send nothing, and of their states `d_states` is the cotangent itself.
    visited = jnp.arange(x.shape[1], dtype=jnp.int32).reshape(1, -1, 1) < num_visited
    send = lambda mlps: jnp.concatenate([send_message(mlp, h) for mlp in mlps], axis=-1)  # noqa: E731
    (d_mlps,) = jax.vjp(send, mlps)[1](d_sent)
    _, pull_back = jax.vjp(lambda gru, x: gru_cell(gru, m, x), gru, x)
    d_gru, dx = pull_back(jnp.where(visited, d_states, zeros))
    return d_mlps, d_gru, jnp.where(visited, dx, dh), None, None


_sweep.defvjp(_sweep_fwd, _sweep_bwd)
