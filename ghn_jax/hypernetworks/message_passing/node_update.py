"""What one node of a gated graph network computes: the messages it sends, and its next state.

These are plain functions of parameters and states. States may have any leading axes, so that the
same code serves one node or all of them.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]


def _row(bias: jax.Array, x: jax.Array) -> jax.Array:
    return bias.reshape((1,) * (x.ndim - 1) + (-1,))


def hidden_layer(mlp: Params, h: jax.Array) -> jax.Array:
    """Compute a message up to its first relu: (..., D) -> (..., H)."""
    h = jnp.matmul(h, mlp["kernel_1"])
    return h + _row(mlp["bias_1"], h)


def output_layer(mlp: Params, hidden: jax.Array) -> jax.Array:
    """Compute a message from its first relu up to its second: (..., H) -> (..., D)."""
    h = jnp.matmul(jax.nn.relu(hidden), mlp["kernel_2"])
    return h + _row(mlp["bias_2"], h)


def send_message(mlp: Params, h: jax.Array) -> jax.Array:
    """Compute a message by linear, relu, linear, relu: (..., D) -> (..., D)."""
    return jax.nn.relu(output_layer(mlp, hidden_layer(mlp, h)))


def join_mlps(mlps: Sequence[Params]) -> Params:
    """Join MLPs into one with their outputs side by side, for fewer, larger products per node."""
    kernel_1, bias_1, bias_2 = (
        jnp.concatenate([mlp[name] for mlp in mlps], axis=-1)
        for name in ("kernel_1", "bias_1", "bias_2")
    )
    kernel_2 = jax.scipy.linalg.block_diag(*[mlp["kernel_2"] for mlp in mlps])
    return {"kernel_1": kernel_1, "bias_1": bias_1, "kernel_2": kernel_2, "bias_2": bias_2}


def gates_from_state(gru: Params, x: jax.Array) -> jax.Array:
    """Compute the state's contribution to the GRU's three gates: (..., D) -> (..., 3 D)."""
    h = jnp.matmul(x, gru["state_kernel"])
    return h + _row(gru["state_bias"], h)


def gates_from_message(gru: Params, m: jax.Array) -> jax.Array:
    """Compute the message's contribution to the GRU's three gates: (..., D) -> (..., 3 D)."""
    h = jnp.matmul(m, gru["message_kernel"])
    return h + _row(gru["message_bias"], h)


def apply_gates(from_message: jax.Array, from_state: jax.Array, x: jax.Array) -> jax.Array:
    """Apply the gates as PyTorch's GRUCell does: the reset gate acts on the state's projection."""
    reset_m, update_m, new_m = jnp.split(from_message, 3, axis=-1)
    reset_h, update_h, new_h = jnp.split(from_state, 3, axis=-1)
    update = jax.nn.sigmoid(update_m + update_h)
    new = jnp.tanh(new_m + jax.nn.sigmoid(reset_m + reset_h) * new_h)
    return new + update * (x - new)


def gru_cell(gru: Params, m: jax.Array, x: jax.Array) -> jax.Array:
    """Compute the next states from states x and messages m: (..., D), (..., D) -> (..., D)."""
    return apply_gates(gates_from_message(gru, m), gates_from_state(gru, x), x)


def slopes(elementwise: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Differentiate a function of which each output depends on one element of each part of x."""
    y, pull_back = jax.vjp(elementwise, x)
    return pull_back(jnp.ones_like(y))[0]
