"""Max pooling whose gradient is cheap on a CPU.

XLA's gradient of a window's maximum searches every window again, pixel by pixel: 25 to 170 ms where
the operation itself takes 1 (2 cores, batch 64). A maximum over a 3x3 window is one over the
columns of three maxima over the rows: six choices between shifted images, whose gradient is six
masked shifts. With the adjoint, which of three was taken is noted as a byte, twice. On ties the
first pixel of a window, row by row, takes the gradient, as in XLA and PyTorch.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ghn_jax.targets import operations


def max_pool(x: jax.Array, stride: int) -> jax.Array:
    """Maxima over 3x3 windows, padded by one: (B, H, W, C) -> (B, H / s, W / s, C)."""
    return _largest_of_three(_largest_of_three(x, 2, stride), 1, stride)


def _largest_of_three(x, axis, stride):
    """Maxima of three neighbours along an axis; chosen, so that a gradient goes to the first."""
    first, second, third = _neighbours(x, axis, stride)
    best = jnp.where(second > first, second, first)
    return jnp.where(third > best, third, best)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_with_adjoint(x: jax.Array, stride: int) -> jax.Array:
    """Maxima as of `max_pool`."""
    return operations.max_pool(x, stride)


def _max_pool_fwd(x, stride):
    rows, column = _first_of_three(x, 2, stride)
    y, row = _first_of_three(rows, 1, stride)
    # The image itself is not read again: an empty slice carries its size.
    return y, (row, column, x[:0])


def _max_pool_bwd(stride, residuals, dy):
    row, column, empty = residuals
    d_rows = _place(dy, row, 1, stride, empty.shape[1])
    return (_place(d_rows, column, 2, stride, empty.shape[2]),)


max_pool_with_adjoint.defvjp(_max_pool_fwd, _max_pool_bwd)


def _first_of_three(x, axis, stride):
    """Maxima of three neighbours along an axis, and which was the first to attain it (int8)."""
    first, second, third = _neighbours(x, axis, stride)
    best = jnp.maximum(first, second)
    index = jnp.where(second > first, jnp.int8(1), jnp.int8(0))
    index = jnp.where(third > best, jnp.int8(2), index)
    return jnp.maximum(best, third), index


def _neighbours(x, axis, stride):
    size = x.shape[axis]
    num = (size - 1) // stride + 1
    widths = [(0, 0)] * x.ndim
    widths[axis] = (1, 1 if stride == 1 else stride * (num + 1) - size - 1)
    padded = jnp.pad(x, widths, constant_values=-jnp.inf)
    if stride == 1:
        return [lax.slice_in_dim(padded, tap, tap + num, axis=axis) for tap in range(3)]
    # (num + 1) pairs: XLA reads slices of an axis of its own faster than strided ones.
    shape = (*x.shape[:axis], num + 1, 2, *x.shape[axis + 1 :])
    pairs = padded.reshape(shape)
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    take = lambda array, start: lax.slice_in_dim(array, start, start + num, axis=axis)  # noqa: E731
    return [take(even, 0), take(odd, 0), take(even, 1)]


def _place(dy, index, axis, stride, size):
    """The transpose of taking the neighbours that `index` names."""
    zero = jnp.zeros((), dy.dtype)
    taps = [jnp.where(index == tap, dy, zero) for tap in range(3)]
    num = dy.shape[axis]

    def pad(array, before, after):
        return lax.pad(
            array, zero, [(before, after, 0) if a == axis else (0, 0, 0) for a in range(dy.ndim)]
        )

    if stride == 1:
        return pad(taps[0], -1, 1) + taps[1] + pad(taps[2], 1, -1)
    even = pad(taps[0], 0, 1) + pad(taps[2], 1, 0)
    odd = pad(taps[1], 0, 1)
    shape = (*dy.shape[:axis], 2 * (num + 1), *dy.shape[axis + 1 :])
    whole = jnp.stack([even, odd], axis + 1).reshape(shape)
    return lax.slice_in_dim(whole, 1, 1 + size, axis=axis)
