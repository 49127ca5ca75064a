"""Gated graph network: sequential message passing along a network's graph, forward, then backward.

For node v in topological order, with incoming edges (outgoing ones on the way back):
    m_v = sum over d=1 of MLP(h_u) + sum over virtual edges of MLP_virtual(h_u) / d_uv
    h_v = GRU(m_v, h_v)
using the h_u already updated in this pass (GHN-1 eq. 3, GHN-2 eq. 4).

A message depends only on its sender, so each MLP runs once per node instead of once per edge. The
gradient is a sweep of the same kind in reverse order; letting JAX derive it from the scan would
carry a whole (N, D) cotangent through every step.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ghn_jax.hypernetworks.layers import uniform_by_fan_in


class GatedGNN(nn.Module):
    """One round of message passing over B graphs in parallel.

    Attributes:
        virtual_edges: Longest distance of an edge that passes messages; 1 means the network's own.
    """

    virtual_edges: int

    @nn.compact
    def __call__(
        self, x: jax.Array, distance: jax.Array, num_visited: jax.Array | int | None = None
    ) -> jax.Array:
        """Update node states.

        Args:
            x: (B, N, D) states, nodes in topological order.
            distance: (B, N, N) uint8 [receiver, sender], 0 where there is no edge.
            num_visited: () int32, how many of the first nodes are visited, the others being
                padding: time follows this number, not N. None visits all.

        Returns:
            (B, N, D); padding keeps its state.
        """
        size = x.shape[-1]
        has_virtual = self.virtual_edges > 1
        params = {"mlp": self._mlp("mlp", size, size // 2 if has_virtual else size)}
        weights = {"mlp": jnp.asarray(distance == 1, x.dtype)}
        if has_virtual:
            params["mlp_virtual"] = self._mlp("mlp_virtual", size, size // 2)
            reaches = (distance > 0) & (distance <= self.virtual_edges)
            inverse = 1.0 / jnp.maximum(distance, 1).astype(x.dtype)
            weights["mlp_virtual"] = jnp.where(reaches, inverse, jnp.zeros_like(inverse))
        init = uniform_by_fan_in(size)
        gru = {
            name: self.param(f"gru_{name}", init, shape)
            for name, shape in {
                "message_kernel": (size, 3 * size),
                "state_kernel": (size, 3 * size),
                "message_bias": (3 * size,),
                "state_bias": (3 * size,),
            }.items()
        }
        num_nodes = x.shape[1]
        num_visited = jnp.asarray(num_nodes if num_visited is None else num_visited, jnp.int32)
        zero, end = jnp.zeros((), jnp.int32), jnp.full((), num_nodes, jnp.int32)
        x = _sweep(params, gru, x, weights, (zero, num_visited))
        # Backward in topological order: every array is flipped, edges point the other way, and
        # padding comes first.
        flipped = {name: jnp.flip(w, (1, 2)).swapaxes(1, 2) for name, w in weights.items()}
        x = _sweep(params, gru, jnp.flip(x, 1), flipped, (end - num_visited, end))
        return jnp.flip(x, 1)

    def _mlp(self, name: str, size: int, hidden_size: int) -> dict[str, jax.Array]:
        first, second = uniform_by_fan_in(size), uniform_by_fan_in(hidden_size)
        return {
            "kernel_1": self.param(f"{name}_kernel_1", first, (size, hidden_size)),
            "bias_1": self.param(f"{name}_bias_1", first, (hidden_size,)),
            "kernel_2": self.param(f"{name}_kernel_2", second, (hidden_size, size)),
            "bias_2": self.param(f"{name}_bias_2", second, (size,)),
        }


def _row(bias, x):
    return bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _hidden(mlp, h):
    """Before the first relu of a message: (..., D) -> (..., hidden)."""
    h = jnp.matmul(h, mlp["kernel_1"])
    return h + _row(mlp["bias_1"], h)


def _output(mlp, hidden):
    """Before the second relu of a message: (..., hidden) -> (..., D)."""
    h = jnp.matmul(jax.nn.relu(hidden), mlp["kernel_2"])
    return h + _row(mlp["bias_2"], h)


def _messages(params, h):
    """linear, relu, linear, relu of each MLP: (..., D) -> (..., D)."""
    return {name: jax.nn.relu(_output(mlp, _hidden(mlp, h))) for name, mlp in params.items()}


def _from_state(gru, x):
    """The state's part in the GRU's three gates: (..., D) -> (..., 3 D)."""
    h = jnp.matmul(x, gru["state_kernel"])
    return h + _row(gru["state_bias"], h)


def _from_message(gru, m):
    """The message's part in the GRU's three gates: (..., D) -> (..., 3 D)."""
    h = jnp.matmul(m, gru["message_kernel"])
    return h + _row(gru["message_bias"], h)


def _gates(from_message, from_state, x):
    """PyTorch's GRUCell: reset and update gates, and a candidate whose state part is reset."""
    reset_m, update_m, new_m = jnp.split(from_message, 3, axis=-1)
    reset_h, update_h, new_h = jnp.split(from_state, 3, axis=-1)
    update = jax.nn.sigmoid(update_m + update_h)
    new = jnp.tanh(new_m + jax.nn.sigmoid(reset_m + reset_h) * new_h)
    return new + update * (x - new)


def _gru(gru, m, x):
    return _gates(_from_message(gru, m), _from_state(gru, x), x)


def _slopes(elementwise, x):
    """The derivative of a function whose outputs depend on one element of each part of x each."""
    y, pull_back = jax.vjp(elementwise, x)
    return pull_back(jnp.ones_like(y))[0]


def _nodes_first(array):
    return jnp.moveaxis(array, 1, 0)


def _gather(weights, messages):
    """Sum of the weighted messages to one node of each graph: {(B, N)}, {(B, N, D)} -> (B, D)."""
    sums = [jnp.einsum("bn,bnd->bd", weights[name], messages[name]) for name in weights]
    return functools.reduce(jnp.add, sums)


@jax.custom_vjp
def _sweep(params, gru, x, weights, span):
    """Visit the nodes of span = (first, end) in order; each gathers what earlier ones send."""
    return _sweep_fwd(params, gru, x, weights, span)[0]


def _sweep_fwd(params, gru, x, weights, span):
    states = _nodes_first(x)  # (N, B, D)
    from_states = _from_state(gru, states)  # (N, B, 3 D)
    to_nodes = jax.tree.map(_nodes_first, weights)  # (N, B, N) by receiver

    def visit(index, carry):
        sent, h, m = carry
        message = _gather({name: w[index] for name, w in to_nodes.items()}, sent)
        state = _gates(_from_message(gru, message), from_states[index], states[index])
        new = _messages(params, state)
        sent = {
            name: lax.dynamic_update_slice_in_dim(sent[name], new[name][:, None], index, 1)
            for name in sent
        }
        return sent, h.at[index].set(state), m.at[index].set(message)

    sent = {name: jnp.zeros_like(x) for name in params}
    _, h, m = lax.fori_loop(*span, visit, (sent, states, jnp.zeros_like(states)))
    return _nodes_first(h), (params, gru, states, weights, span, h, m)


def _sweep_bwd(residuals, dh):
    params, gru, states, weights, (first, end), h, m = residuals  # states, h, m: (N, B, D)
    from_nodes = jax.tree.map(lambda w: jnp.moveaxis(w, 2, 0), weights)  # (N, B, N) by sender
    # The sweep is linear in the cotangents: what the states decide is computed for all nodes ahead.
    from_states = _from_state(gru, states)
    gate_slopes = _slopes(lambda a: _gates(a, from_states, states), _from_message(gru, m))
    hidden = {name: _hidden(mlp, h) for name, mlp in params.items()}
    output = {name: _output(mlp, hidden[name]) for name, mlp in params.items()}
    hidden_slopes, output_slopes = (
        {name: _slopes(jax.nn.relu, x) for name, x in before.items()} for before in (hidden, output)
    )

    def to_sender(name, index, d_sent):
        d_output = d_sent * output_slopes[name][index]
        d_hidden = jnp.matmul(d_output, params[name]["kernel_2"].T) * hidden_slopes[name][index]
        return jnp.matmul(d_hidden, params[name]["kernel_1"].T)

    def visit(step, carry):
        # Of padding, d_states is the cotangent itself and the others are zero. What is written is
        # not read, or XLA copies all of it at each step; dm alone has to be.
        dm, d_states, d_sent_all = carry
        index = end - 1 - (step - first)
        # What the receivers of this node's messages send back.
        d_sent = {name: jnp.einsum("bn,bnd->bd", w[index], dm) for name, w in from_nodes.items()}
        parts = [to_sender(name, index, d) for name, d in d_sent.items()]
        dh_node = functools.reduce(jnp.add, parts, dh[index])
        d_gates = jnp.concatenate([dh_node] * 3, axis=-1) * gate_slopes[index]
        dm_node = jnp.matmul(d_gates, gru["message_kernel"].T)
        dm = lax.dynamic_update_slice_in_dim(dm, dm_node[:, None], index, 1)
        d_sent_all = {name: d_sent_all[name].at[index].set(d_sent[name]) for name in d_sent}
        return dm, d_states.at[index].set(dh_node), d_sent_all

    dm = jnp.zeros_like(dh)
    dh = _nodes_first(dh)  # (N, B, D)
    zeros = jnp.zeros_like(dh)
    carry = (dm, dh, dict.fromkeys(params, zeros))
    _, d_states, d_sent = lax.fori_loop(first, end, visit, carry)
    # Gradients of the parameters and of the states before the sweep, all nodes at once.
    index = jnp.arange(dh.shape[0], dtype=jnp.int32).reshape(-1, 1, 1)
    visited = (index >= first) & (index < end)
    (d_params,) = jax.vjp(lambda params: _messages(params, h), params)[1](d_sent)
    _, pull_back = jax.vjp(lambda gru, x: _gru(gru, m, x), gru, states)
    d_gru, dx = pull_back(jnp.where(visited, d_states, zeros))
    return d_params, d_gru, _nodes_first(jnp.where(visited, dx, dh)), None, None


_sweep.defvjp(_sweep_fwd, _sweep_bwd)
