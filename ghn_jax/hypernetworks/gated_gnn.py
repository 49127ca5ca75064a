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


def _bias(bias, x):
    return bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _message(mlp, h):
    """linear, relu, linear, relu: (..., D) -> (..., D)."""
    h = jnp.matmul(h, mlp["kernel_1"])
    h = jax.nn.relu(h + _bias(mlp["bias_1"], h))
    h = jnp.matmul(h, mlp["kernel_2"])
    return jax.nn.relu(h + _bias(mlp["bias_2"], h))


def _messages(params, h):
    return {name: _message(mlp, h) for name, mlp in params.items()}


def _gru(gru, m, h):
    """PyTorch's GRUCell: reset and update gates, and a candidate whose state part is reset."""
    from_message = jnp.matmul(m, gru["message_kernel"])
    from_message = from_message + _bias(gru["message_bias"], from_message)
    from_state = jnp.matmul(h, gru["state_kernel"])
    from_state = from_state + _bias(gru["state_bias"], from_state)
    reset_m, update_m, new_m = jnp.split(from_message, 3, axis=-1)
    reset_h, update_h, new_h = jnp.split(from_state, 3, axis=-1)
    update = jax.nn.sigmoid(update_m + update_h)
    new = jnp.tanh(new_m + jax.nn.sigmoid(reset_m + reset_h) * new_h)
    return new + update * (h - new)


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
    to_nodes = jax.tree.map(_nodes_first, weights)  # (N, B, N) by receiver

    def visit(index, carry):
        sent, h, m = carry
        message = _gather({name: w[index] for name, w in to_nodes.items()}, sent)
        state = _gru(gru, message, states[index])
        new = _messages(params, state)
        sent = {
            name: lax.dynamic_update_slice_in_dim(sent[name], new[name][:, None], index, 1)
            for name in sent
        }
        return sent, h.at[index].set(state), m.at[index].set(message)

    sent = {name: jnp.zeros_like(x) for name in params}
    _, h, m = lax.fori_loop(*span, visit, (sent, states, jnp.zeros_like(states)))
    h, m = _nodes_first(h), _nodes_first(m)  # (B, N, D)
    return h, (params, gru, x, weights, span, h, m)


def _sweep_bwd(residuals, dh):
    params, gru, x, weights, (first, end), h, m = residuals
    from_nodes = jax.tree.map(lambda w: jnp.moveaxis(w, 2, 0), weights)  # (N, B, N) by sender
    nodes = [_nodes_first(array) for array in (h, m, x)]

    def visit(step, carry):
        # Of padding, d_states is the cotangent itself and the others are zero.
        dm, d_states, d_sent_all = carry
        index = end - 1 - (step - first)
        h_node, m_node, x_node = (array[index] for array in nodes)
        # What the receivers of this node's messages send back.
        d_sent = {name: jnp.einsum("bn,bnd->bd", w[index], dm) for name, w in from_nodes.items()}
        (from_receivers,) = jax.vjp(lambda h: _messages(params, h), h_node)[1](d_sent)
        dh_node = d_states[0][index] + from_receivers
        dm_node, dx_node = jax.vjp(lambda m, x: _gru(gru, m, x), m_node, x_node)[1](dh_node)
        dm = lax.dynamic_update_slice_in_dim(dm, dm_node[:, None], index, 1)
        d_states = (d_states[0].at[index].set(dh_node), d_states[1].at[index].set(dx_node))
        d_sent_all = {name: d_sent_all[name].at[index].set(d_sent[name]) for name in d_sent}
        return dm, d_states, d_sent_all

    dh = _nodes_first(dh)  # (N, B, D)
    zeros = jnp.zeros_like(dh)
    carry = (jnp.zeros_like(x), (dh, dh), dict.fromkeys(params, zeros))
    _, (dh, dx), d_sent = lax.fori_loop(first, end, visit, carry)
    # Gradients of the parameters, all visited nodes at once.
    index = jnp.arange(dh.shape[0], dtype=jnp.int32)
    visited = ((index >= first) & (index < end)).reshape(-1, 1, 1)
    dh = jnp.where(visited, dh, zeros)
    h, m, states = nodes
    (d_params,) = jax.vjp(lambda params: _messages(params, h), params)[1](d_sent)
    (d_gru,) = jax.vjp(lambda gru: _gru(gru, m, states), gru)[1](dh)
    return d_params, d_gru, _nodes_first(dx), None, None


_sweep.defvjp(_sweep_fwd, _sweep_bwd)
