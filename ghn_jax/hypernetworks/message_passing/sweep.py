"""A sweep of sequential message passing over the nodes of graphs, and its adjoint.

In: node states, distances, the MLPs of the messages, the GRU. Out: the states after every node has,
in topological order or against it, gathered what the nodes before it send and updated its state.

A message depends only on its sender, so each MLP runs once per node instead of once per edge. The
gradient is a sweep of the same kind the other way around; letting JAX derive it would carry a
(B, N, D) cotangent through every step.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

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
from ghn_jax.hypernetworks.message_passing.visits import BLOCK, Edges, Visits, read_rows


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
    if kind.nodes_at_once < 1 or BLOCK % kind.nodes_at_once:
        raise ValueError(f"nodes_at_once is {kind.nodes_at_once}, expected a divisor of {BLOCK}")
    num_visited = -(-num_visited // kind.nodes_at_once) * kind.nodes_at_once
    num_nodes = x.shape[1]
    missing = -num_nodes % BLOCK
    if missing:
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
        distance = jnp.pad(distance, ((0, 0), (0, missing), (0, missing)))
    return _sweep(kind, list(mlps), gru, x, distance, num_visited)[:, :num_nodes]


class _Carry(NamedTuple):
    """What the sweep writes, (B, N, D) each and a block of it while that is visited.

    Attributes:
        sent: For each MLP, the messages that nodes send; zero before their visit.
        state: Of the nodes.
        message: That nodes gathered.
    """

    sent: list[jax.Array]
    state: jax.Array
    message: jax.Array


class _Gathered(NamedTuple):
    """What a block of nodes knows when it is entered.

    Attributes:
        outside: (B, block, D), the sum of what was sent from outside of the block.
        weights: For each MLP, (B, block, block): of the messages within it.
    """

    outside: jax.Array
    weights: list[jax.Array]


class _Known(NamedTuple):
    """What is known of every node before the sweep.

    Attributes:
        state: (B, N, D), before its visit.
        gates: (B, N, 3 D), of the GRU, the state's part.
    """

    state: jax.Array
    gates: jax.Array


class _Residuals(NamedTuple):
    """What the adjoint needs: the arguments of the sweep, and of every node its results.

    Attributes:
        mlps: As `sweep` takes them.
        gru: As `sweep` takes it.
        x: (B, N, D) states before the sweep.
        distance: (B, N, N) uint8.
        num_visited: () int32.
        state: (B, N, D), after the sweep.
        message: (B, N, D), that the nodes gathered.
    """

    mlps: list[dict[str, jax.Array]]
    gru: dict[str, jax.Array]
    x: jax.Array
    distance: jax.Array
    num_visited: jax.Array
    state: jax.Array
    message: jax.Array


class _Cotangents(NamedTuple):
    """What the adjoint writes, a block of it while that is visited; H = number of MLPs x D.

    Attributes:
        message: (B, N, D), of the messages gathered; zero before a node's visit.
        state: (B, N, D), of the states after the update.
        sent: (B, N, H), of the messages sent.
    """

    message: jax.Array
    state: jax.Array
    sent: jax.Array


class _GatheredCotangents(NamedTuple):
    """What a block of nodes knows when the adjoint enters it.

    Attributes:
        outside: For each MLP, (B, block, D): what receivers outside of the block send back.
        weights: For each MLP, (B, block, block): of the messages within it.
    """

    outside: list[jax.Array]
    weights: list[jax.Array]


class _Slopes(NamedTuple):
    """What the adjoint knows of every node beforehand: it is linear in the cotangents.

    Attributes:
        state: (B, N, D), the cotangent of the result.
        gates: (B, N, 3 D), of the new state in the gates.
        hidden: (B, N, F), of the MLPs' hidden layers in what enters their relu.
        output: (B, N, H), the same of their output layers.
    """

    state: jax.Array
    gates: jax.Array
    hidden: jax.Array
    output: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sweep(kind, mlps, gru, x, distance, num_visited):
    return _sweep_fwd(kind, mlps, gru, x, distance, num_visited)[0]


def _sweep_fwd(kind, mlps, gru, x, distance, num_visited):
    edges = Edges(distance, kind.virtual_edges, kind.is_reverse, x.dtype)
    visits = Visits(x.shape[1], num_visited, kind.nodes_at_once, kind.is_reverse)
    mlp, num_mlps = join_mlps(mlps), len(mlps)

    def gather(weights, sent):
        return sum(jnp.matmul(w, s) for w, s in zip(weights, sent, strict=True))

    def enter(start, carry: _Carry) -> _Gathered:
        def add(first, size, total):
            of_chunk = [read_rows(sent, first, size) for sent in carry.sent]
            return total + gather(edges.weights(start, first, size), of_chunk)

        outside = jnp.zeros((x.shape[0], BLOCK, x.shape[2]), x.dtype)
        outside = visits.sum_over_visited(start, add, outside)
        return _Gathered(outside, edges.weights(start, start, BLOCK))

    def visit(own: _Carry, gathered: _Gathered, known: _Known) -> _Carry:
        message = gathered.outside + gather(gathered.weights, own.sent)
        state = apply_gates(gates_from_message(gru, message), known.gates, known.state)
        sent = jnp.split(send_message(mlp, state), num_mlps, axis=-1)
        return _Carry(sent, state, message)

    zeros = jnp.zeros_like(x)
    carry = _Carry([zeros] * num_mlps, x, zeros)
    carry = visits.visit_all(enter, visit, carry, _Known(x, gates_from_state(gru, x)))
    state, message = carry.state, carry.message
    return state, _Residuals(mlps, gru, x, distance, num_visited, state, message)


def _sweep_bwd(kind, residuals: _Residuals, dh):
    mlps, gru, x, distance, num_visited, h, m = residuals
    edges = Edges(distance, kind.virtual_edges, not kind.is_reverse, x.dtype)
    visits = Visits(x.shape[1], num_visited, kind.nodes_at_once, not kind.is_reverse)
    mlp, num_mlps = join_mlps(mlps), len(mlps)
    # The sweep is linear in the cotangents: what the states decide is computed for all nodes ahead.
    from_state, hidden = gates_from_state(gru, x), hidden_layer(mlp, h)
    slopes_of_nodes = _Slopes(
        dh,
        slopes(lambda a: apply_gates(a, from_state, x), gates_from_message(gru, m)),
        slopes(jax.nn.relu, hidden),
        slopes(jax.nn.relu, output_layer(mlp, hidden)),
    )

    def enter(start, carry: _Cotangents) -> _GatheredCotangents:
        def add(first, size, totals):
            of_chunk = read_rows(carry.message, first, size)
            weights = edges.weights(start, first, size)
            return [t + jnp.matmul(w, of_chunk) for t, w in zip(totals, weights, strict=True)]

        outside = [jnp.zeros((x.shape[0], BLOCK, x.shape[2]), x.dtype)] * num_mlps
        outside = visits.sum_over_visited(start, add, outside)
        return _GatheredCotangents(outside, edges.weights(start, start, BLOCK))

    def visit(own: _Cotangents, gathered: _GatheredCotangents, slope: _Slopes) -> _Cotangents:
        # What the receivers of this node's messages send back.
        by_mlp = [
            outside + jnp.matmul(weights, own.message)
            for outside, weights in zip(*gathered, strict=True)
        ]
        d_sent = jnp.concatenate(by_mlp, axis=-1)
        d_hidden = jnp.matmul(d_sent * slope.output, mlp["kernel_2"].T) * slope.hidden
        d_state = slope.state + jnp.matmul(d_hidden, mlp["kernel_1"].T)
        d_gates = jnp.concatenate([d_state] * 3, axis=-1) * slope.gates
        return _Cotangents(jnp.matmul(d_gates, gru["message_kernel"].T), d_state, d_sent)

    zeros = jnp.zeros_like(x)
    carry = _Cotangents(zeros, dh, jnp.concatenate([zeros] * num_mlps, axis=-1))
    _, d_states, d_sent = visits.visit_all(enter, visit, carry, slopes_of_nodes)
    # Gradients of the parameters and of the states before the sweep, all nodes at once. Nodes that
    # are not visited send nothing, and of their states `d_states` is the cotangent itself.
    visited = jnp.arange(x.shape[1], dtype=jnp.int32).reshape(1, -1, 1) < num_visited
    send = lambda mlps: jnp.concatenate([send_message(mlp, h) for mlp in mlps], axis=-1)  # noqa: E731
    (d_mlps,) = jax.vjp(send, mlps)[1](d_sent)
    _, pull_back = jax.vjp(lambda gru, x: gru_cell(gru, m, x), gru, x)
    d_gru, dx = pull_back(jnp.where(visited, d_states, zeros))
    return d_mlps, d_gru, jnp.where(visited, dx, dh), None, None


_sweep.defvjp(_sweep_fwd, _sweep_bwd)
