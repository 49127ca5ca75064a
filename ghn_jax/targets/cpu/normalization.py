"""Batch norm with batch statistics and a handwritten gradient that makes few passes over the image.

JAX's own gradient keeps the centred image for the backward pass and reads it twice. This one keeps
only the input, the mean and the inverse standard deviation. Statistics are in at least float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ghn_jax.targets.operations import as_row, moments, promote


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_with_adjoint(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """Normalise like `operations.batch_norm`: (..., C), (C,), (C,) -> (..., C)."""
    return _batch_norm_fwd(x, scale, bias, epsilon)[0]


def _batch_norm_fwd(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean, var = moments(x)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    y = promote(x) * as_row(factor, x.ndim) + as_row(bias - mean * factor, x.ndim)
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _batch_norm_bwd(
    epsilon: float, residuals: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = residuals
    dtype, ndim = x.dtype, x.ndim
    axes, count = tuple(range(ndim - 1)), x.size // x.shape[-1]
    dy, centred = promote(dy), promote(x) - as_row(mean, ndim)
    d_bias = jnp.sum(dy, axis=axes)
    d_scale = jnp.sum(dy * centred, axis=axes) * inverse
    # dx = scale / sigma * (dy - mean(dy) - x_hat mean(dy x_hat))
    factor = scale * inverse
    of_centred = factor * inverse * d_scale / count
    dx = dy * as_row(factor, ndim) - centred * as_row(of_centred, ndim)
    dx = dx - as_row(factor * d_bias / count, ndim)
    return dx.astype(dtype), d_scale, d_bias


batch_norm_with_adjoint.defvjp(_batch_norm_fwd, _batch_norm_bwd)
