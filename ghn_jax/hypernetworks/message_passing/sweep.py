"""A sweep of sequential message passing over the nodes of graphs, and its adjoint.

The sweep takes node states, distances, the MLPs of the messages and the GRU. In topological order
or in reverse, every node gathers the messages of the nodes before it and updates its state; the
sweep returns the states after that.

A message depends only on its sender, so each MLP runs once per node instead of once per edge. The
gradient is a sweep of the same kind in the opposite direction; if JAX derived it, a (B, N, D)
cotangent would be carried through every step.
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
    """The kind of a sweep.

    Attributes:
        virtual_edges: Longest distance over which messages pass; 1 means the network's own edges.
        is_reverse: Whether messages go against the edges and nodes are visited from last to first.
        nodes_at_once: Number of consecutive nodes of each graph that are visited together, a
            divisor of 32. No edge may join two of them.
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
        kind: The kind of sweep.
        mlps: Parameters of the MLP for messages along the network's edges and, if there are virtual
            edges, of the one for messages along those: `kernel_1` (D, H), `bias_1`, `kernel_2`
            (H, D), `bias_2`.
        gru: Parameters of the GRU: `message_kernel` and `state_kernel` (D, 3 D), `message_bias` and
            `state_bias`.
        x: (B, N, D) states, with nodes in topological order.
        distance: (B, N, N) uint8 distances [receiver, sender], 0 where there is no edge.
        num_visited: () int32, the number of leading nodes to visit, which is rounded up to a
            multiple of `nodes_at_once`.

    Returns:
        (B, N, D) states after the sweep; nodes that are not visited keep theirs.

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
    """What the sweep writes: (B, N, D) arrays, or one block of them while it is visited.

    Attributes:
        sent: For each MLP, the messages that nodes send, which are zero before their visit.
        state: The states of the nodes.
        message: The sums of messages that nodes gathered.
    """

    sent: list[jax.Array]
    state: jax.Array
    message: jax.Array


class _Gathered(NamedTuple):
    """What is known of a block of nodes when the sweep enters it.

    Attributes:
        outside: (B, block, D) sums of the messages sent from outside the block.
        weights: For each MLP, (B, block, block) weights of the messages within the block.
    """

    outside: jax.Array
    weights: list[jax.Array]


class _Known(NamedTuple):
    """What is known of every node before the sweep.

    Attributes:
        state: (B, N, D) states before the visit.
        gates: (B, N, 3 D), the state's contribution to the GRU's gates.
    """

    state: jax.Array
    gates: jax.Array


class _Residuals(NamedTuple):
    """What the adjoint needs: the arguments of the sweep, and its results for every node.

    Attributes:
        mlps: The argument of `sweep`.
        gru: The argument of `sweep`.
        x: (B, N, D) states before the sweep.
        distance: (B, N, N) uint8 distances.
        num_visited: () int32 number of nodes that were visited.
        state: (B, N, D) states after the sweep.
        message: (B, N, D) sums of messages that nodes gathered.
    """

    mlps: list[dict[str, jax.Array]]
    gru: dict[str, jax.Array]
    x: jax.Array
    distance: jax.Array
    num_visited: jax.Array
    state: jax.Array
    message: jax.Array


class _Cotangents(NamedTuple):
    """What the adjoint writes, or one block of it while it is visited; H = number of MLPs x D.

    Attributes:
        message: (B, N, D) cotangents of the gathered messages, zero before a node's visit.
        state: (B, N, D) cotangents of the states after the update.
        sent: (B, N, H) cotangents of the messages sent.
    """

    message: jax.Array
    state: jax.Array
    sent: jax.Array


class _GatheredCotangents(NamedTuple):
    """What is known of a block of nodes when the adjoint enters it.

    Attributes:
        outside: For each MLP, (B, block, D) sums of what receivers outside the block send back.
        weights: For each MLP, (B, block, block) weights of the messages within the block.
    """

    outside: list[jax.Array]
    weights: list[jax.Array]


class _Slopes(NamedTuple):
    """What is known of every node before the adjoint's sweep, which is linear in the cotangents.

    Attributes:
        state: (B, N, D) cotangent of the result.
        gates: (B, N, 3 D) derivatives of the new state with respect to the gates.
        hidden: (B, N, F) derivatives of the relu of the MLPs' hidden layers.
        output: (B, N, H) derivatives of the relu of the MLPs' output layers.
    """

    state: jax.Array
    gates: jax.Array
    hidden: jax.Array
    output: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sweep(
    kind: Sweep,
    mlps: list[dict[str, jax.Array]],
    gru: dict[str, jax.Array],
    x: jax.Array,
    distance: jax.Array,
    num_visited: jax.Array,
) -> jax.Array:
    return _sweep_fwd(kind, mlps, gru, x, distance, num_visited)[0]


def _sweep_fwd(
    kind: Sweep,
    mlps: list[dict[str, jax.Array]],
    gru: dict[str, jax.Array],
    x: jax.Array,
    distance: jax.Array,
    num_visited: jax.Array,
) -> tuple[jax.Array, _Residuals]:
    edges = Edges(distance, kind.virtual_edges, kind.is_reverse, x.dtype)
    visits = Visits(x.shape[1], num_visited, kind.nodes_at_once, kind.is_reverse)
    mlp, num_mlps = join_mlps(mlps), len(mlps)

    def gather(weights: list[jax.Array], sent: list[jax.Array]) -> jax.Array | int:
        return sum(jnp.matmul(w, s) for w, s in zip(weights, sent, strict=True))

    def enter(start: jax.Array, carry: _Carry) -> _Gathered:
        def add(first: jax.Array, size: int, total: jax.Array) -> jax.Array:
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


def _sweep_bwd(kind: Sweep, residuals: _Residuals, dh: jax.Array) -> tuple:
    mlps, gru, x, distance, num_visited, h, m = residuals
    edges = Edges(distance, kind.virtual_edges, not kind.is_reverse, x.dtype)
    visits = Visits(x.shape[1], num_visited, kind.nodes_at_once, not kind.is_reverse)
    mlp, num_mlps = join_mlps(mlps), len(mlps)
    # The sweep is linear in the cotangents, so everything that depends on the states alone is
    # computed beforehand, for all nodes at once.
    from_state, hidden = gates_from_state(gru, x), hidden_layer(mlp, h)
    slopes_of_nodes = _Slopes(
        dh,
        slopes(lambda a: apply_gates(a, from_state, x), gates_from_message(gru, m)),
        slopes(jax.nn.relu, hidden),
        slopes(jax.nn.relu, output_layer(mlp, hidden)),
    )

    def enter(start: jax.Array, carry: _Cotangents) -> _GatheredCotangents:
        def add(first: jax.Array, size: int, totals: list[jax.Array]) -> list[jax.Array]:
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
    # Gradients of the parameters and of the states before the sweep, for all nodes at once. Nodes
    # that are not visited send nothing and keep their states, whose cotangents pass unchanged.
    visited = jnp.arange(x.shape[1], dtype=jnp.int32).reshape(1, -1, 1) < num_visited
    send = lambda mlps: jnp.concatenate([send_message(mlp, h) for mlp in mlps], axis=-1)  # noqa: E731
    (d_mlps,) = jax.vjp(send, mlps)[1](d_sent)
    _, pull_back = jax.vjp(lambda gru, x: gru_cell(gru, m, x), gru, x)
    d_gru, dx = pull_back(jnp.where(visited, d_states, zeros))
    return d_mlps, d_gru, jnp.where(visited, dx, dh), None, None


_sweep.defvjp(_sweep_fwd, _sweep_bwd)
