"""Convolutions and their gradients, computed in ways that are fast on XLA's CPU backend.

The choices were measured (`benchmarks/ops.py`; 2 cores, batch 64, at most 32 pixels):

- 1x1: one matrix product. Its gradient is fast only if all pixels form a single axis.
- k x k: XLA's convolution and its own gradients, 70 to 110 GFLOP/s; patches and products of shifted
  images are up to twice as slow. There are two exceptions. At stride 2, XLA computes the input
  gradient on an image with zeros between pixels, up to 35 times slower than one dense convolution
  per parity of the input's rows and columns. And for 3x3 kernels at stride 2 or on 2x2 pixels, one
  product with all patches is faster still.
- Kernels about as large as the image: one product with the dense matrix of the linear map.
- Depthwise: a sum of products of shifted images, 60 times faster than `feature_group_count`.

In the versions with an adjoint, a relu before a convolution is part of its gradient, so only the
operation's input is kept for the backward pass. Images are (B, H, W, C), kernels (H, W, I, O).
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ghn_jax.targets import operations
from ghn_jax.targets.operations import IMAGE_LAYOUT, output_size

_CACHED_ELEMENTS = 2**15
_Operands = tuple[jax.Array, jax.Array]  # image and kernel, or their gradients
_ConvolveFn = Callable[[jax.Array, jax.Array, tuple[int, int]], jax.Array]
_Taps = tuple[int, list[int], list[int]]  # number of pixels, taps, and the dy that each tap reads


def multiply_pixels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply (..., I) by (I, O), with all pixels in one axis here and in the gradients."""
    product = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def convolve(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], activate: bool) -> jax.Array:
    """Convolve x, or relu(x) if `activate`, like `operations.convolve`."""
    x = jax.nn.relu(x) if activate else x
    return _choose(x.shape, kernel.shape, stride)(x, kernel, stride)


convolve_with_adjoint = jax.custom_vjp(convolve, nondiff_argnums=(2, 3))


def _convolve_fwd(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], activate: bool
) -> tuple[jax.Array, _Operands]:
    return convolve(x, kernel, stride, activate), (x, kernel)


def _convolve_bwd(
    stride: tuple[int, int], activate: bool, residuals: _Operands, dy: jax.Array
) -> _Operands:
    x, kernel = residuals
    active = jax.nn.relu(x) if activate else x
    convolve_fn = _choose(x.shape, kernel.shape, stride)
    _, pull_back = jax.vjp(lambda x, kernel: convolve_fn(x, kernel, stride), active, kernel)
    dx, d_kernel = pull_back(dy)
    if convolve_fn is operations.convolve and max(stride) > 1:
        dx = input_gradient_by_parity(dy, kernel, stride, x.shape)
    return _mask(dx, x, activate), d_kernel


convolve_with_adjoint.defvjp(_convolve_fwd, _convolve_bwd)


def _mask(dx: jax.Array, x: jax.Array, activate: bool) -> jax.Array:
    return jnp.where(x > 0, dx, jnp.zeros_like(dx)) if activate else dx


def _choose(
    image_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: tuple[int, int]
) -> _ConvolveFn:
    if kernel_shape[:2] == (1, 1):
        return convolve_pixels
    pixels, kernel_size = image_shape[1] * image_shape[2], max(kernel_shape[:2])
    if kernel_shape[:2] == (3, 3) and (min(stride) > 1 or pixels <= 4):
        return convolve_by_patches
    if pixels <= 16 and kernel_size >= 5:
        return convolve_by_dense_matrix
    return operations.convolve


def convolve_pixels(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> jax.Array:
    """Convolve with a 1x1 kernel."""
    return multiply_pixels(x[:, :: stride[0], :: stride[1]], kernel[0, 0])


def convolve_by_patches(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> jax.Array:
    """Convolve by one product of the matrix of all patches with the kernel."""
    patches = jnp.concatenate(shifted_windows(x, kernel.shape[:2], stride), axis=-1)
    return multiply_pixels(patches, kernel.reshape(-1, kernel.shape[-1]))


def convolve_by_dense_matrix(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> jax.Array:
    """Convolve by one product with the (H W I, H' W' O) matrix of the whole linear map."""
    batch, height, width, channels = x.shape
    rows = _tap_indicator(kernel.shape[0], height, stride[0], x.dtype)
    columns = _tap_indicator(kernel.shape[1], width, stride[1], x.dtype)
    matrix = jnp.einsum("khp,klio->lhpio", rows, kernel)
    matrix = jnp.einsum("lwq,lhpio->hwipqo", columns, matrix)
    out_shape = (batch, rows.shape[2], columns.shape[2], kernel.shape[3])
    matrix = matrix.reshape(height * width * channels, -1)
    return jnp.matmul(x.reshape(batch, -1), matrix).reshape(out_shape)


def _tap_indicator(kernel_size: int, size: int, stride: int, dtype: np.dtype) -> np.ndarray:
    """Return (k, size, output size): 1 if tap k of the output pixel reads the input pixel."""
    indicator = np.zeros((kernel_size, size, output_size(size, stride)), dtype)
    for tap in range(kernel_size):
        for out in range(indicator.shape[2]):
            source = out * stride + tap - kernel_size // 2
            if 0 <= source < size:
                indicator[tap, source, out] = 1
    return indicator


def input_gradient_by_parity(
    dy: jax.Array, kernel: jax.Array, stride: tuple[int, int], image_shape: tuple[int, ...]
) -> jax.Array:
    """Compute the input gradient of a strided convolution.

    Input pixel h receives dy[o] through tap t if h + k // 2 = stride * o + t. Pixels with the same
    remainder modulo the stride see the same taps, so each remainder is one dense convolution.

    Args:
        dy: (B, H', W', O) cotangent of the output.
        kernel: (kh, kw, I, O) kernel.
        stride: Strides along height and width.
        image_shape: Shape of the input, (B, H, W, I).

    Returns:
        The (B, H, W, I) gradient.
    """
    rows = [_taps(kernel.shape[0], stride[0], r, image_shape[1]) for r in range(stride[0])]
    columns = [_taps(kernel.shape[1], stride[1], r, image_shape[2]) for r in range(stride[1])]
    parts = [[_parity_part(dy, kernel, row, column) for column in columns] for row in rows]
    whole = [_interleave(row, 2, image_shape[2]) for row in parts]
    return _interleave(whole, 1, image_shape[1])


def _taps(kernel_size: int, stride: int, remainder: int, size: int) -> _Taps:
    """Find which taps reach the pixels with a remainder modulo the stride."""
    num_pixels = len(range(remainder, size, stride))
    taps = [t for t in range(kernel_size) if (remainder + kernel_size // 2 - t) % stride == 0]
    return num_pixels, taps, [(remainder + kernel_size // 2 - t) // stride for t in taps]


def _parity_part(dy: jax.Array, kernel: jax.Array, row: _Taps, column: _Taps) -> jax.Array:
    (height, row_taps, row_offsets), (width, column_taps, column_offsets) = row, column
    if not (height and width and row_taps and column_taps):
        return jnp.zeros((dy.shape[0], height, width, kernel.shape[2]), dy.dtype)
    # Offsets decrease as taps increase, so the kernel is flipped.
    taps = kernel[np.array(row_taps[::-1])][:, np.array(column_taps[::-1])].swapaxes(2, 3)
    padding = [
        (-min(offsets), size - 1 + max(offsets) - (have - 1))
        for size, offsets, have in (
            (height, row_offsets, dy.shape[1]),
            (width, column_offsets, dy.shape[2]),
        )
    ]
    return lax.conv_general_dilated(dy, taps, (1, 1), padding, dimension_numbers=IMAGE_LAYOUT)


def _interleave(parts: Sequence[jax.Array], axis: int, size: int) -> jax.Array:
    if len(parts) == 1:
        return parts[0]
    longest = max(part.shape[axis] for part in parts)
    widths = [[(0, 0)] * 4 for _ in parts]
    for part, width in zip(parts, widths, strict=True):
        width[axis] = (0, longest - part.shape[axis])
    padded = [jnp.pad(part, width) for part, width in zip(parts, widths, strict=True)]
    shape = list(padded[0].shape)
    shape[axis] = longest * len(parts)
    stacked = jnp.stack(padded, axis + 1).reshape(shape)
    return lax.slice_in_dim(stacked, 0, size, axis=axis)


def convolve_depthwise(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int, activate: bool
) -> jax.Array:
    """Convolve each channel of x, or of relu(x), like `operations.convolve_depthwise`."""
    x = jax.nn.relu(x) if activate else x
    return _sum_shifted_products(x, kernel, stride, dilation)


convolve_depthwise_with_adjoint = jax.custom_vjp(convolve_depthwise, nondiff_argnums=(2, 3, 4))


def _depthwise_fwd(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int, activate: bool
) -> tuple[jax.Array, _Operands]:
    return convolve_depthwise(x, kernel, stride, dilation, activate), (x, kernel)


def _depthwise_bwd(
    stride: int, dilation: int, activate: bool, residuals: _Operands, dy: jax.Array
) -> _Operands:
    x, kernel = residuals
    active = jax.nn.relu(x) if activate else x
    _, pull_back = jax.vjp(lambda x: _sum_shifted_products(x, kernel, stride, dilation), active)
    (dx,) = pull_back(dy)
    d_kernel = _depthwise_kernel_gradient(active, dy, kernel.shape, stride, dilation)
    return _mask(dx, x, activate), d_kernel.reshape(kernel.shape)


convolve_depthwise_with_adjoint.defvjp(_depthwise_fwd, _depthwise_bwd)


def _sum_shifted_products(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    taps = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])  # (kh kw, 1, 1, 1, C)
    windows = shifted_windows(x, kernel.shape[:2], (stride, stride), dilation)
    return functools.reduce(jnp.add, (w * tap for w, tap in zip(windows, taps, strict=True)))


def _depthwise_kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], stride: int, dilation: int
) -> jax.Array:
    """Return the (kh kw, C) gradient."""

    def reduce(x: jax.Array, dy: jax.Array) -> jax.Array:
        windows = shifted_windows(x, kernel_shape[:2], (stride, stride), dilation)
        return jnp.stack([jnp.sum(w * dy, axis=(0, 1, 2)) for w in windows])

    # A few images at a time, so that their windows stay in cache while all taps are reduced.
    num_images = _largest_power_of_two(_CACHED_ELEMENTS // math.prod(dy.shape[1:]))
    num_images = math.gcd(dy.shape[0], num_images)
    if num_images == dy.shape[0]:
        return reduce(x, dy)

    def add_images(total: jax.Array, images: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + reduce(*images), None

    zero = jnp.zeros((kernel_shape[0] * kernel_shape[1], kernel_shape[3]), dy.dtype)
    groups = [a.reshape(-1, num_images, *a.shape[1:]) for a in (x, dy)]
    return lax.scan(add_images, zero, tuple(groups))[0]


def _largest_power_of_two(limit: int) -> int:
    return 1 << max(limit.bit_length() - 1, 0)


def shifted_windows(
    x: jax.Array, size: tuple[int, ...], stride: tuple[int, int], dilation: int = 1
) -> list[jax.Array]:
    """Return the strided views of a padded image under each tap of a kernel, row by row.

    Args:
        x: (B, H, W, C) images.
        size: Height and width of the kernel, both odd.
        stride: Strides along height and width.
        dilation: Distance between taps, in pixels.

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
