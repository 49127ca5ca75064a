"""Convolutions and their gradients in the way XLA's CPU backend is fast at.

Which one is fast was measured (`benchmarks/ops.py`; 2 cores, batch 64, 32 pixels and less):

- 1x1: the product of two matrices. Its gradient is fast only if the pixels are one axis.
- k x k: XLA's convolution and its own gradients, 70 to 110 GFLOP/s; patches and products of shifted
  images are up to twice as slow. Exceptions: the gradient of the input at stride 2, which XLA
  computes on an image with zeros between pixels, up to 35 times slower than one dense convolution
  for each parity of the input's rows and columns; and 3x3 kernels at stride 2 or on 2x2 pixels,
  where one product with all patches is faster still.
- Kernels about as large as the image: one product with the dense matrix of the linear map.
- Depthwise: the sum of products of shifted images, 60 times faster than `feature_group_count`.

With an adjoint, a relu before a convolution is part of its gradient, so that only the operation's
input is kept for the backward pass. Images are (B, H, W, C), kernels (H, W, I, O).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ghn_jax.targets import operations
from ghn_jax.targets.operations import IMAGE_LAYOUT, output_size

_CACHED_ELEMENTS = 2**15


def multiply_pixels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., I) and (I, O) -> (..., O), with all pixels as one axis, also in the gradients."""
    product = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def convolve(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], activate: bool) -> jax.Array:
    """Convolve x, or relu(x) where `activate`, as `operations.convolve`."""
    x = jax.nn.relu(x) if activate else x
    return _choose(x.shape, kernel.shape, stride)(x, kernel, stride)


convolve_with_adjoint = jax.custom_vjp(convolve, nondiff_argnums=(2, 3))


def _convolve_fwd(x, kernel, stride, activate):
    return convolve(x, kernel, stride, activate), (x, kernel)


def _convolve_bwd(stride, activate, residuals, dy):
    x, kernel = residuals
    active = jax.nn.relu(x) if activate else x
    convolve_fn = _choose(x.shape, kernel.shape, stride)
    _, pull_back = jax.vjp(lambda x, kernel: convolve_fn(x, kernel, stride), active, kernel)
    dx, d_kernel = pull_back(dy)
    if convolve_fn is operations.convolve and max(stride) > 1:
        dx = input_gradient_by_parity(dy, kernel, stride, x.shape)
    return _mask(dx, x, activate), d_kernel


convolve_with_adjoint.defvjp(_convolve_fwd, _convolve_bwd)


def _mask(dx, x, activate):
    return jnp.where(x > 0, dx, jnp.zeros_like(dx)) if activate else dx


def _choose(image_shape, kernel_shape, stride):
    if kernel_shape[:2] == (1, 1):
        return convolve_pixels
    pixels, kernel_size = image_shape[1] * image_shape[2], max(kernel_shape[:2])
    if kernel_shape[:2] == (3, 3) and (min(stride) > 1 or pixels <= 4):
        return convolve_by_patches
    if pixels <= 16 and kernel_size >= 5:
        return convolve_by_dense_matrix
    return operations.convolve


def convolve_pixels(x, kernel, stride):
    """Convolve with a 1x1 kernel."""
    return multiply_pixels(x[:, :: stride[0], :: stride[1]], kernel[0, 0])


def convolve_by_patches(x, kernel, stride):
    """Convolve by one product of all patches, side by side, with the kernel."""
    patches = jnp.concatenate(shifted_windows(x, kernel.shape[:2], stride), axis=-1)
    return multiply_pixels(patches, kernel.reshape(-1, kernel.shape[-1]))


def convolve_by_dense_matrix(x, kernel, stride):
    """Convolve by one product with the (H W I, H' W' O) matrix of the whole linear map."""
    batch, height, width, channels = x.shape
    rows = _tap_indicator(kernel.shape[0], height, stride[0], x.dtype)
    columns = _tap_indicator(kernel.shape[1], width, stride[1], x.dtype)
    matrix = jnp.einsum("khp,klio->lhpio", rows, kernel)
    matrix = jnp.einsum("lwq,lhpio->hwipqo", columns, matrix)
    out_shape = (batch, rows.shape[2], columns.shape[2], kernel.shape[3])
    matrix = matrix.reshape(height * width * channels, -1)
    return jnp.matmul(x.reshape(batch, -1), matrix).reshape(out_shape)


def _tap_indicator(kernel_size: int, size: int, stride: int, dtype) -> np.ndarray:
    """(k, size, output size): 1 where tap k of the output pixel reads the input pixel."""
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
    """The gradient of a strided convolution's input.

    Input pixel h receives dy[o] through tap t where h + k // 2 = stride * o + t: pixels of one
    remainder modulo the stride see the same taps, and each remainder is one dense convolution.

    Args:
        dy: (B, H', W', O) cotangent of the output.
        kernel: (kh, kw, I, O).
        stride: Strides of height and width.
        image_shape: (B, H, W, I).

    Returns:
        (B, H, W, I).
    """
    rows = [_taps(kernel.shape[0], stride[0], r, image_shape[1]) for r in range(stride[0])]
    columns = [_taps(kernel.shape[1], stride[1], r, image_shape[2]) for r in range(stride[1])]
    parts = [[_parity_part(dy, kernel, row, column) for column in columns] for row in rows]
    whole = [_interleave(row, 2, image_shape[2]) for row in parts]
    return _interleave(whole, 1, image_shape[1])


def _taps(kernel_size, stride, remainder, size):
    """Of the pixels with this remainder: their number, their taps, and which dy each tap reads."""
    num_pixels = len(range(remainder, size, stride))
    taps = [t for t in range(kernel_size) if (remainder + kernel_size // 2 - t) % stride == 0]
    return num_pixels, taps, [(remainder + kernel_size // 2 - t) // stride for t in taps]


def _parity_part(dy, kernel, row, column):
    (height, row_taps, row_offsets), (width, column_taps, column_offsets) = row, column
    if not (height and width and row_taps and column_taps):
        return jnp.zeros((dy.shape[0], height, width, kernel.shape[2]), dy.dtype)
    # Offsets fall as taps rise, so the kernel is flipped for a convolution.
    taps = kernel[np.array(row_taps[::-1])][:, np.array(column_taps[::-1])].swapaxes(2, 3)
    padding = [
        (-min(offsets), size - 1 + max(offsets) - (have - 1))
        for size, offsets, have in (
            (height, row_offsets, dy.shape[1]),
            (width, column_offsets, dy.shape[2]),
        )
    ]
    return lax.conv_general_dilated(dy, taps, (1, 1), padding, dimension_numbers=IMAGE_LAYOUT)


def _interleave(parts, axis, size):
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
    """Convolve each channel of x, or of relu(x), as `operations.convolve_depthwise`."""
    x = jax.nn.relu(x) if activate else x
    return _sum_shifted_products(x, kernel, stride, dilation)


convolve_depthwise_with_adjoint = jax.custom_vjp(convolve_depthwise, nondiff_argnums=(2, 3, 4))


def _depthwise_fwd(x, kernel, stride, dilation, activate):
    return convolve_depthwise(x, kernel, stride, dilation, activate), (x, kernel)


def _depthwise_bwd(stride, dilation, activate, residuals, dy):
    x, kernel = residuals
    active = jax.nn.relu(x) if activate else x
    _, pull_back = jax.vjp(lambda x: _sum_shifted_products(x, kernel, stride, dilation), active)
    (dx,) = pull_back(dy)
    d_kernel = _depthwise_kernel_gradient(active, dy, kernel.shape, stride, dilation)
    return _mask(dx, x, activate), d_kernel.reshape(kernel.shape)


convolve_depthwise_with_adjoint.defvjp(_depthwise_fwd, _depthwise_bwd)


def _sum_shifted_products(x, kernel, stride, dilation):
    taps = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])  # (kh kw, 1, 1, 1, C)
    windows = shifted_windows(x, kernel.shape[:2], (stride, stride), dilation)
    return functools.reduce(jnp.add, (w * tap for w, tap in zip(windows, taps, strict=True)))


def _depthwise_kernel_gradient(x, dy, kernel_shape, stride, dilation):
    """(kh kw, C)."""

    def reduce(x, dy):
        windows = shifted_windows(x, kernel_shape[:2], (stride, stride), dilation)
        return jnp.stack([jnp.sum(w * dy, axis=(0, 1, 2)) for w in windows])

    # A few images at a time: their windows stay in cache while all taps are reduced.
    num_images = _largest_power_of_two(_CACHED_ELEMENTS // math.prod(dy.shape[1:]))
    num_images = math.gcd(dy.shape[0], num_images)
    if num_images == dy.shape[0]:
        return reduce(x, dy)

    def add_images(total, images):
        return total + reduce(*images), None

    zero = jnp.zeros((kernel_shape[0] * kernel_shape[1], kernel_shape[3]), dy.dtype)
    groups = [a.reshape(-1, num_images, *a.shape[1:]) for a in (x, dy)]
    return lax.scan(add_images, zero, tuple(groups))[0]


def _largest_power_of_two(limit):
    return 1 << max(limit.bit_length() - 1, 0)


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
