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
    def __call__(self, x: jax.Array, distance: jax.Array) -> jax.Array:
        """Update node states.

        Args:
            x: (B, N, D) states, nodes in topological order.
            distance: (B, N, N) uint8 [receiver, sender], 0 where there is no edge.

        Returns:
            (B, N, D).
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
        x = _sweep(params, gru, x, weights)
        # Backward in topological order: every array is flipped, and edges point the other way.
        flipped = {name: jnp.flip(w, (1, 2)).swapaxes(1, 2) for name, w in weights.items()}
        return jnp.flip(_sweep(params, gru, jnp.flip(x, 1), flipped), 1)

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
def _sweep(params, gru, x, weights):
    """Visit nodes in order; each gathers what earlier ones send: (B, N, D) -> (B, N, D)."""
    return _sweep_fwd(params, gru, x, weights)[0]


def _sweep_fwd(params, gru, x, weights):
    def visit(sent, node):
        index, state, to_node = node  # (), (B, D), {(B, N)}
        m = _gather(to_node, sent)
        h = _gru(gru, m, state)
        new = _messages(params, h)
        sent = {
            name: lax.dynamic_update_slice_in_dim(sent[name], new[name][:, None], index, 1)
            for name in sent
        }
        return sent, (h, m)

    sent = {name: jnp.zeros_like(x) for name in params}
    to_nodes = jax.tree.map(_nodes_first, weights)  # (N, B, N)
    _, (h, m) = lax.scan(visit, sent, (jnp.arange(x.shape[1]), _nodes_first(x), to_nodes))
    h, m = _nodes_first(h), _nodes_first(m)  # (B, N, D)
    return h, (params, gru, x, weights, h, m)


def _sweep_bwd(residuals, dh):
    params, gru, x, weights, h, m = residuals

    def visit(dm, node):
        index, dh_node, h_node, m_node, x_node, from_node = node
        # What the receivers of this node's messages send back.
        d_sent = {name: jnp.einsum("bn,bnd->bd", w, dm) for name, w in from_node.items()}
        (from_receivers,) = jax.vjp(lambda h: _messages(params, h), h_node)[1](d_sent)
        dh_node = dh_node + from_receivers
        dm_node, dx_node = jax.vjp(lambda m, x: _gru(gru, m, x), m_node, x_node)[1](dh_node)
        dm = lax.dynamic_update_slice_in_dim(dm, dm_node[:, None], index, 1)
        return dm, (dh_node, dx_node, d_sent)

    nodes = (
        jnp.arange(x.shape[1]),
        *(_nodes_first(array) for array in (dh, h, m, x)),
        jax.tree.map(lambda w: jnp.moveaxis(w, 2, 0), weights),  # (N, B, N) by sender
    )
    _, outputs = lax.scan(visit, jnp.zeros_like(x), nodes, reverse=True)
    dh, dx, d_sent = jax.tree.map(_nodes_first, outputs)
    # Gradients of the parameters, all nodes at once.
    (d_params,) = jax.vjp(lambda params: _messages(params, h), params)[1](d_sent)
    (d_gru,) = jax.vjp(lambda gru: _gru(gru, m, x), gru)[1](dh)
    return d_params, d_gru, dx, jax.tree.map(jnp.zeros_like, weights)


_sweep.defvjp(_sweep_fwd, _sweep_bwd)
