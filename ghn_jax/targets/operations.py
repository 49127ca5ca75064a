"""The numerical operations of target networks, one function each.

Images are (B, H, W, C), kernels (H, W, I, O). Five operations have several spellings, and a network
computes with the `Operations` it was made with. The ones here are native: they call XLA's own
operation wherever there is one, which is fast on accelerators and is what a tracer reads.
`spelling` lists the others and says who chooses.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

IMAGE_LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Operations:
    """One spelling of the operations.

    Arguments are positional, and all spellings agree up to rounding.

    Attributes:
        convolve: Computes `convolve(x, kernel, stride, activate)`.
        convolve_depthwise: Computes `convolve_depthwise(x, kernel, stride, dilation, activate)`.
        max_pool: Computes `max_pool(x, stride)`.
        batch_norm: Computes `batch_norm(x, scale, bias, epsilon)`.
        attend: Computes `attend(qkv, num_heads)`.
    """

    convolve: Callable[[jax.Array, jax.Array, tuple[int, int], bool], jax.Array]
    convolve_depthwise: Callable[[jax.Array, jax.Array, int, int, bool], jax.Array]
    max_pool: Callable[[jax.Array, int], jax.Array]
    batch_norm: Callable[[jax.Array, jax.Array, jax.Array, float], jax.Array]
    attend: Callable[[jax.Array, int], jax.Array]


def output_size(size: int, stride: int) -> int:
    """Return how many pixels along an axis a "same"-padded operation with an odd kernel gives."""
    return (size - 1) // stride + 1


def convolve(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int] = (1, 1), activate: bool = False
) -> jax.Array:
    """Convolve with an odd kernel, padding by half its size (PyTorch's `padding=k // 2`).

    Args:
        x: (B, H, W, I) images.
        kernel: (kh, kw, I, O) kernel, with odd kh and kw.
        stride: Strides along height and width.
        activate: Whether to apply relu to x first.

    Returns:
        (B, ceil(H / stride), ceil(W / stride), O).
    """
    x = jax.nn.relu(x) if activate else x
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=IMAGE_LAYOUT)


def convolve_patches(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Convolve with stride equal to the kernel size: (B, H, W, I) -> (B, H/k, W/k, O)."""
    size = kernel.shape[0]
    return lax.conv_general_dilated(
        x, kernel, (size, size), [(padding, padding)] * 2, dimension_numbers=IMAGE_LAYOUT
    )


def convolve_depthwise(
    x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1, activate: bool = False
) -> jax.Array:
    """Convolve every channel with its own odd kernel, padding by half its dilated extent.

    Args:
        x: (B, H, W, C) images.
        kernel: (kh, kw, 1, C) kernel.
        stride: Stride along both axes.
        dilation: Dilation along both axes.
        activate: Whether to apply relu to x first.

    Returns:
        (B, ceil(H / stride), ceil(W / stride), C).
    """
    x = jax.nn.relu(x) if activate else x
    height, width, _, channels = kernel.shape
    padding = [(dilation * (height // 2),) * 2, (dilation * (width // 2),) * 2]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=IMAGE_LAYOUT,
        feature_group_count=channels,
    )


def max_pool(x: jax.Array, stride: int) -> jax.Array:
    """Take maxima over 3x3 windows padded by 1 pixel: (B, H, W, C) -> (B, H / s, W / s, C)."""
    return _pool(x, -jnp.inf, lax.max, stride)


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """Average over 3x3 windows padded by one pixel, without counting the padding."""
    counts = _pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, stride)
    return _pool(x, 0.0, lax.add, stride) * (1.0 / counts)


def _pool(x: jax.Array, init: float, reduce_fn: Callable, stride: int) -> jax.Array:
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, np.asarray(init, x.dtype), reduce_fn, window, strides, padding)


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalise every channel over all other axes, with statistics in at least float32.

    Args:
        x: (..., C) activations.
        scale: (C,) scales, in at least float32.
        bias: (C,) biases, with the dtype of `scale`.
        epsilon: Constant added to the variance.

    Returns:
        An array with the shape and dtype of x.
    """
    mean, var = moments(x)
    factor = scale * lax.rsqrt(var + epsilon)
    y = promote(x) * as_row(factor, x.ndim) + as_row(bias - mean * factor, x.ndim)
    return y.astype(x.dtype)


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return each channel's mean and (biased) variance, (C,) each, in at least float32.

    Computed in two passes, because one pass loses digits to cancellation.
    """
    x = promote(x)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axis=axes)
    return mean, jnp.mean(jnp.square(x - as_row(mean, x.ndim)), axis=axes)


def promote(x: jax.Array) -> jax.Array:
    """Cast to float32 if the dtype is narrower."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def as_row(vector: jax.Array, ndim: int) -> jax.Array:
    """Reshape a vector to broadcast along the last axis: (C,) -> (1, ..., 1, C)."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def attend(qkv: jax.Array, num_heads: int) -> jax.Array:
    """Compute softmax(q k^T / sqrt(d)) v for every head.

    Args:
        qkv: (B, T, 3 * num_heads * d) queries, keys and values, each ordered by head.
        num_heads: Number of heads.

    Returns:
        (B, T, num_heads * d).
    """
    query, key, value = split_heads(qkv, num_heads)
    logits = jnp.matmul(query, jnp.swapaxes(key, -1, -2))  # (B, heads, T, T)
    logits = logits * query.dtype.type(query.shape[-1] ** -0.5)
    weights = jnp.exp(logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    # Rows are divided by their sums after the product, when they have d entries instead of T.
    return merge_heads(jnp.matmul(weights, value) / jnp.sum(weights, axis=-1, keepdims=True))


def split_heads(qkv: jax.Array, num_heads: int) -> jax.Array:
    """Split queries, keys and values by head: (B, T, 3 heads d) -> (3, B, heads, T, d)."""
    batch, tokens, _ = qkv.shape
    return jnp.transpose(qkv.reshape(batch, tokens, 3, num_heads, -1), (2, 0, 3, 1, 4))


def merge_heads(y: jax.Array) -> jax.Array:
    """Join the heads again: (B, heads, T, d) -> (B, T, heads d)."""
    return jnp.swapaxes(y, 1, 2).reshape(y.shape[0], y.shape[2], -1)


NATIVE = Operations(convolve, convolve_depthwise, max_pool, batch_norm, attend)
