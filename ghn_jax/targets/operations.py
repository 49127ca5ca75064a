"""The numerical operations target networks are made of, each behind one function.

Images are (B, H, W, C), kernels (H, W, I, O). Five of them have several spellings; a network
computes with the `Operations` it was made with. Those here are the native ones: an operation of XLA
where it has one, which is right on accelerators and what a tracer reads. `spelling` says which
others there are, and who chooses.
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
    """A spelling of the operations: functions of positional arguments, equal up to rounding.

    Attributes:
        convolve: (x, kernel, stride, activate), as `convolve`.
        convolve_depthwise: (x, kernel, stride, dilation, activate), as `convolve_depthwise`.
        max_pool: (x, stride), as `max_pool`.
        batch_norm: (x, scale, bias, epsilon), as `batch_norm`.
        attend: (qkv, num_heads), as `attend`.
    """

    convolve: Callable[[jax.Array, jax.Array, tuple[int, int], bool], jax.Array]
    convolve_depthwise: Callable[[jax.Array, jax.Array, int, int, bool], jax.Array]
    max_pool: Callable[[jax.Array, int], jax.Array]
    batch_norm: Callable[[jax.Array, jax.Array, jax.Array, float], jax.Array]
    attend: Callable[[jax.Array, int], jax.Array]


def output_size(size: int, stride: int) -> int:
    """Number of output pixels of a "same"-padded operation with an odd kernel along one axis."""
    return (size - 1) // stride + 1


def convolve(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int] = (1, 1), activate: bool = False
) -> jax.Array:
    """Convolve with an odd kernel, padded by half its size (PyTorch's `padding=k // 2`).

    Args:
        x: (B, H, W, I) images.
        kernel: (kh, kw, I, O), kh and kw odd.
        stride: Strides of height and width.
        activate: Whether a relu comes first.

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
    """Convolve every channel with its own odd kernel, padded by half its dilated extent.

    Args:
        x: (B, H, W, C) images.
        kernel: (kh, kw, 1, C).
        stride: Stride of both axes.
        dilation: Dilation of both axes.
        activate: Whether a relu comes first.

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
    """Maxima over 3x3 windows padded by one pixel: (B, H, W, C) -> (B, H / s, W / s, C)."""
    return _pool(x, -jnp.inf, lax.max, stride)


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """Means over 3x3 windows padded by one pixel, the padding not counted."""
    counts = _pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, stride)
    return _pool(x, 0.0, lax.add, stride) * (1.0 / counts)


def _pool(x, init, reduce_fn, stride):
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, np.asarray(init, x.dtype), reduce_fn, window, strides, padding)


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalise every channel over all other axes, by statistics that are float32 at least.

    Args:
        x: (..., C).
        scale: (C,), float32 at least.
        bias: (C,), of the type of the scale.
        epsilon: Added to the variance.

    Returns:
        An array like x.
    """
    mean, var = moments(x)
    factor = scale * lax.rsqrt(var + epsilon)
    y = promote(x) * as_row(factor, x.ndim) + as_row(bias - mean * factor, x.ndim)
    return y.astype(x.dtype)


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and (biased) variance of every channel, (C,) each, in two passes, float32 at least."""
    x = promote(x)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axis=axes)
    return mean, jnp.mean(jnp.square(x - as_row(mean, x.ndim)), axis=axes)


def promote(x: jax.Array) -> jax.Array:
    """Cast types narrower than float32 to it."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def as_row(vector: jax.Array, ndim: int) -> jax.Array:
    """(C,) -> (1, ..., 1, C)."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def attend(qkv: jax.Array, num_heads: int) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v for every head.

    Args:
        qkv: (B, T, 3 * num_heads * d): queries, keys, values, each head by head.
        num_heads: Number of heads.

    Returns:
        (B, T, num_heads * d).
    """
    query, key, value = split_heads(qkv, num_heads)
    logits = jnp.matmul(query, jnp.swapaxes(key, -1, -2))  # (B, heads, T, T)
    logits = logits * query.dtype.type(query.shape[-1] ** -0.5)
    weights = jnp.exp(logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    # Rows are divided by their sums after the product: of d columns instead of T.
    return merge_heads(jnp.matmul(weights, value) / jnp.sum(weights, axis=-1, keepdims=True))


def split_heads(qkv: jax.Array, num_heads: int) -> jax.Array:
    """(B, T, 3 heads d) -> (3, B, heads, T, d): queries, keys and values."""
    batch, tokens, _ = qkv.shape
    return jnp.transpose(qkv.reshape(batch, tokens, 3, num_heads, -1), (2, 0, 3, 1, 4))


def merge_heads(y: jax.Array) -> jax.Array:
    """(B, heads, T, d) -> (B, T, heads d)."""
    return jnp.swapaxes(y, 1, 2).reshape(y.shape[0], y.shape[2], -1)


NATIVE = Operations(convolve, convolve_depthwise, max_pool, batch_norm, attend)
