"""Multi-head self-attention over a few hundred tokens, with a handwritten gradient.

At 121 tokens the (B, heads, T, T) array of probabilities dominates the time: it is 30 times as
large as the image. JAX's gradient keeps two such arrays and passes over them more often than
needed. This one keeps a single array, before its rows are divided by their sums, and arranges every
product such that the large factor is read row by row.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ghn_jax.targets.operations import merge_heads, split_heads


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def attend_with_adjoint(qkv: jax.Array, num_heads: int) -> jax.Array:
    """Attend like `operations.attend`: (B, T, 3 heads d) -> (B, T, heads d)."""
    return _attend_fwd(qkv, num_heads)[0]


def _attend_fwd(qkv: jax.Array, num_heads: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    query, key, value = split_heads(qkv, num_heads)
    logits = jnp.matmul(query, _transpose(key)) * _scale(query)  # (B, heads, T, T)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = jnp.matmul(weights, value) / total
    return merge_heads(y), (qkv, weights, total, y)


def _attend_bwd(
    num_heads: int, residuals: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array]:
    qkv, weights, total, y = residuals
    query, key, value = split_heads(qkv, num_heads)
    dy = jnp.swapaxes(dy.reshape(*dy.shape[:2], num_heads, -1), 1, 2)  # (B, heads, T, d)
    dy = dy / total
    # A softmax has d_logits = p * (dp - sum(p dp)), and sum(p dp) = sum(y dy).
    mean = jnp.sum(y * dy, axis=-1, keepdims=True)
    d_logits = weights * (jnp.matmul(dy, _transpose(value)) - mean)
    d_query = jnp.matmul(d_logits, key)
    # Left alone, XLA transposes these products and then reads the large factor by columns, which
    # takes a CPU seven times as long.
    rows = lax.optimization_barrier((_transpose(query), _transpose(dy)))
    d_key, d_value = jnp.matmul(rows[0], d_logits), jnp.matmul(rows[1], weights)
    d_key, d_value = map(_transpose, lax.optimization_barrier((d_key, d_value)))
    scale = _scale(query)
    d_qkv = jnp.stack([d_query * scale, d_key * scale, d_value])  # (3, B, heads, T, d)
    return (jnp.transpose(d_qkv, (1, 3, 0, 2, 4)).reshape(qkv.shape),)


attend_with_adjoint.defvjp(_attend_fwd, _attend_bwd)


def _transpose(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _scale(query: jax.Array) -> np.number:
    return query.dtype.type(query.shape[-1] ** -0.5)
