"""The numerical operations target networks are made of, each behind one function.

Images are (B, H, W, C), kernels (H, W, I, O). On accelerators the native operations are right.
XLA's CPU backend is slow in corners that architectures visit often; `convolution` and `pooling` say
where and do otherwise there. `attention` and `normalization` suit every backend.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ghn_jax.targets.cpu import convolution, pooling
from ghn_jax.targets.cpu.attention import attend
from ghn_jax.targets.cpu.convolution import IMAGE_LAYOUT, multiply_pixels, output_size
from ghn_jax.targets.cpu.normalization import as_row, batch_norm, moments

__all__ = [
    "as_row",
    "attend",
    "average_pool",
    "batch_norm",
    "convolve",
    "convolve_depthwise",
    "convolve_patches",
    "max_pool",
    "moments",
    "multiply_pixels",
    "native_operations",
    "output_size",
    "spells_natively",
]

_NATIVE = contextvars.ContextVar("native", default=False)


@contextlib.contextmanager
def native_operations() -> Iterator[None]:
    """Spell every operation as one, whatever the backend: for who reads the computation."""
    token = _NATIVE.set(True)
    try:
        yield
    finally:
        _NATIVE.reset(token)


def spells_natively() -> bool:
    """Whether the computation is only read, within `native_operations`."""
    return _NATIVE.get()


def _spells_for_cpu() -> bool:
    return jax.default_backend() == "cpu" and not spells_natively()


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
    if _spells_for_cpu():
        return convolution.convolve_on_cpu(x, kernel, stride, activate)
    x = jax.nn.relu(x) if activate else x
    return convolution.convolve_natively(x, kernel, stride)


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
    if _spells_for_cpu():
        return convolution.convolve_depthwise_on_cpu(x, kernel, stride, dilation, activate)
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
    if _spells_for_cpu():
        return pooling.max_pool_3x3(x, stride)
    return _pool(x, -jnp.inf, lax.max, stride)


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """Means over 3x3 windows padded by one pixel, the padding not counted."""
    counts = _pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, stride)
    return _pool(x, 0.0, lax.add, stride) * (1.0 / counts)


def _pool(x, init, reduce_fn, stride):
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, np.asarray(init, x.dtype), reduce_fn, window, strides, padding)
