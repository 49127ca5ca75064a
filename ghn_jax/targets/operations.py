"""The numerical operations target networks are made of, each behind one function.

Images are (B, H, W, C), kernels (H, W, I, O). On accelerators the native convolutions are right.
XLA's CPU backend is slow in corners that architectures visit often (measured on 2 cores, batch 64,
forward plus gradient): a depthwise convolution through `feature_group_count` takes about 60 times
the sum of its shifted products, a 1x1 convolution 3 to 5 times its matrix product, a 7x7 kernel on
a 4x4 image 15 times the product with its dense matrix. `convolve` and `convolve_depthwise` choose
by backend and shape.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_IMAGE_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NATIVE = contextvars.ContextVar("native", default=False)


@contextlib.contextmanager
def native_operations() -> Iterator[None]:
    """Spell every convolution as one, whatever the backend: for who reads the computation."""
    token = _NATIVE.set(True)
    try:
        yield
    finally:
        _NATIVE.reset(token)


def _spells_for_cpu() -> bool:
    return jax.default_backend() == "cpu" and not _NATIVE.get()


def output_size(size: int, stride: int) -> int:
    """Number of output pixels of a "same"-padded operation with an odd kernel along one axis."""
    return (size - 1) // stride + 1


def convolve(x: jax.Array, kernel: jax.Array, stride: tuple[int, int] = (1, 1)) -> jax.Array:
    """Convolve with an odd kernel, padded by half its size (PyTorch's `padding=k // 2`).

    Args:
        x: (B, H, W, I) images.
        kernel: (kh, kw, I, O), kh and kw odd.
        stride: Strides of height and width.

    Returns:
        (B, ceil(H / stride), ceil(W / stride), O).
    """
    height, width = kernel.shape[:2]
    if (height, width) == (1, 1):
        return jnp.matmul(x[:, :: stride[0], :: stride[1]], kernel[0, 0])
    if _spells_for_cpu() and _prefers_dense_matrix(x.shape, kernel.shape, stride):
        return _convolve_by_dense_matrix(x, kernel, stride)
    if _spells_for_cpu() and max(stride) > 1 and x.shape[1] * x.shape[2] > 64:
        return _convolve_by_patches(x, kernel, stride)
    padding = [(height // 2, height // 2), (width // 2, width // 2)]
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=_IMAGE_LAYOUT)


def convolve_patches(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Convolve with stride equal to the kernel size: (B, H, W, I) -> (B, H/k, W/k, O)."""
    size = kernel.shape[0]
    return lax.conv_general_dilated(
        x, kernel, (size, size), [(padding, padding)] * 2, dimension_numbers=_IMAGE_LAYOUT
    )


def convolve_depthwise(
    x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1
) -> jax.Array:
    """Convolve every channel with its own odd kernel, padded by half its dilated extent.

    Args:
        x: (B, H, W, C) images.
        kernel: (kh, kw, 1, C).
        stride: Stride of both axes.
        dilation: Dilation of both axes.

    Returns:
        (B, ceil(H / stride), ceil(W / stride), C).
    """
    if _spells_for_cpu():
        return _sum_shifted_products(x, kernel, stride, dilation)
    height, width, _, channels = kernel.shape
    padding = [(dilation * (height // 2),) * 2, (dilation * (width // 2),) * 2]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_IMAGE_LAYOUT,
        feature_group_count=channels,
    )


def max_pool(x: jax.Array, stride: int, size: int = 3) -> jax.Array:
    """Take the maximum over windows padded by half their size: (B, H, W, C) -> (B, H/s, W/s, C)."""
    return _pool(x, -jnp.inf, lax.max, stride, size)


def average_pool(x: jax.Array, stride: int, size: int = 3) -> jax.Array:
    """Average over windows padded by half their size, the padding not counted."""
    zero = np.zeros((), x.dtype)
    counts = _pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), zero, lax.add, stride, size)
    return _pool(x, zero, lax.add, stride, size) * (1.0 / counts)


def _pool(x, init, reduce_fn, stride, size):
    padding = [(0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)]
    init = np.asarray(init, x.dtype)
    return lax.reduce_window(
        x, init, reduce_fn, (1, size, size, 1), (1, stride, stride, 1), padding
    )


def shifted_windows(
    x: jax.Array, size: tuple[int, int], stride: tuple[int, int], dilation: int = 1
) -> list[jax.Array]:
    """The strided views of a padded image under each tap of a kernel, row by row.

    Args:
        x: (B, H, W, C).
        size: Kernel height and width, odd.
        stride: Strides of height and width.
        dilation: Distance between taps.

    Returns:
        kh * kw arrays of shape (B, ceil(H / stride), ceil(W / stride), C).
    """
    batch, height, width, channels = x.shape
    pad_h, pad_w = dilation * (size[0] // 2), dilation * (size[1] // 2)
    padded = jnp.pad(x, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    span_h = (output_size(height, stride[0]) - 1) * stride[0] + 1
    span_w = (output_size(width, stride[1]) - 1) * stride[1] + 1
    return [
        lax.slice(
            padded,
            (0, top, left, 0),
            (batch, top + span_h, left + span_w, channels),
            (1, *stride, 1),
        )
        for top in range(0, dilation * size[0], dilation)
        for left in range(0, dilation * size[1], dilation)
    ]


def _prefers_dense_matrix(image_shape, kernel_shape, stride) -> bool:
    # From `benchmarks/operations.py`: once a kernel covers most of a small image, the (H W I,
    # H' W' O) matrix is hardly larger than the kernel and one product replaces the convolution and
    # both its gradients.
    pixels = image_shape[1] * image_shape[2]
    kernel_size = max(kernel_shape[:2])
    if pixels > 64:
        return False
    if pixels <= 16:
        return kernel_size >= 5 or max(stride) > 1
    return kernel_size >= 5 and max(stride) > 1


def _tap_indicator(kernel_size: int, size: int, stride: int, dtype) -> np.ndarray:
    """(k, size, output size): 1 where tap k of the output pixel reads the input pixel."""
    indicator = np.zeros((kernel_size, size, output_size(size, stride)), dtype)
    for tap in range(kernel_size):
        for out in range(indicator.shape[2]):
            source = out * stride + tap - kernel_size // 2
            if 0 <= source < size:
                indicator[tap, source, out] = 1
    return indicator


def _convolve_by_dense_matrix(x, kernel, stride):
    batch, height, width, channels = x.shape
    rows = _tap_indicator(kernel.shape[0], height, stride[0], x.dtype)
    columns = _tap_indicator(kernel.shape[1], width, stride[1], x.dtype)
    matrix = jnp.einsum("khp,klio->lhpio", rows, kernel)
    matrix = jnp.einsum("lwq,lhpio->hwipqo", columns, matrix)
    out_shape = (batch, rows.shape[2], columns.shape[2], kernel.shape[3])
    matrix = matrix.reshape(height * width * channels, -1)
    return jnp.matmul(x.reshape(batch, -1), matrix).reshape(out_shape)


def _convolve_by_patches(x, kernel, stride):
    patches = jnp.concatenate(shifted_windows(x, kernel.shape[:2], stride), axis=-1)
    return jnp.matmul(patches, kernel.reshape(-1, kernel.shape[-1]))


def _shifted_products(x, kernel, stride, dilation):
    taps = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])  # (kh kw, 1, 1, 1, C)
    windows = shifted_windows(x, kernel.shape[:2], (stride, stride), dilation)
    return functools.reduce(jnp.add, (w * tap for w, tap in zip(windows, taps, strict=True)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _sum_shifted_products(x, kernel, stride, dilation):
    return _shifted_products(x, kernel, stride, dilation)


def _sum_shifted_products_fwd(x, kernel, stride, dilation):
    return _shifted_products(x, kernel, stride, dilation), (x, kernel)


def _sum_shifted_products_bwd(stride, dilation, residuals, dy):
    x, kernel = residuals
    _, pull_back = jax.vjp(lambda x: _shifted_products(x, kernel, stride, dilation), x)
    (dx,) = pull_back(dy)

    # One image at a time: its windows stay in cache while all taps are reduced.
    def add_image(total, image_and_dy):
        image, dy_image = image_and_dy
        windows = shifted_windows(image[None], kernel.shape[:2], (stride, stride), dilation)
        return total + jnp.stack([jnp.sum(w[0] * dy_image, axis=(0, 1)) for w in windows]), None

    zero = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[3]), kernel.dtype)
    total, _ = lax.scan(add_image, zero, (x, dy))
    return dx, total.reshape(kernel.shape)


_sum_shifted_products.defvjp(_sum_shifted_products_fwd, _sum_shifted_products_bwd)
