"""Every CPU implementation equals the native one, in values and gradients; a case by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain_composition import jit

from ghn_jax.targets import operations

LAYOUT = ("NHWC", "HWIO", "NHWC")


def native_convolution(x, kernel, stride, dilation=1, groups=1):
    padding = [(dilation * (size // 2),) * 2 for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def with_gradients(fn, x, kernel):
    """The value, and both gradients with a cotangent that tells positions apart."""
    value, pull_back = jax.vjp(fn, x, kernel)
    cotangent = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
    return value, *pull_back(cotangent)


def assert_same_functions(pairs, x, kernel):
    """Each pair of functions agrees; all are one program, since compiling takes the time."""
    fns = [fn for pair in pairs for fn in pair]
    results = jit(lambda x, kernel: [with_gradients(fn, x, kernel) for fn in fns])(x, kernel)
    for actual, expected in zip(results[::2], results[1::2], strict=True):
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-5)
        for a, e in zip(actual[1:], expected[1:], strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


# Sides of 1, 4, 8 and 9: at most 16, at most 64 and more pixels are computed in different ways.
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1)])
@pytest.mark.parametrize("image_size", [1, 4, 8, 9])
def test_convolve_equals_native(kernel_size, image_size):
    key_x, key_w = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key_x, (2, image_size, image_size, 3))
    kernel = jax.random.normal(key_w, (*kernel_size, 3, 4))
    strides = [(1, 1), (2, 2)]
    strides += {(1, 7): [(1, 2)], (7, 1): [(2, 1)]}.get(kernel_size, [])
    pairs = [
        (
            functools.partial(operations.convolve, stride=stride),
            functools.partial(native_convolution, stride=stride),
        )
        for stride in strides
    ]
    assert_same_functions(pairs, x, kernel)


@pytest.mark.parametrize(("kernel_size", "image_size"), [(3, 1), (3, 7), (5, 4), (5, 7)])
def test_depthwise_equals_native(kernel_size, image_size):
    key_x, key_w = jax.random.split(jax.random.key(1))
    x = jax.random.normal(key_x, (3, image_size, image_size, 4))
    kernel = jax.random.normal(key_w, (kernel_size, kernel_size, 1, 4))
    pairs = [
        (
            functools.partial(operations.convolve_depthwise, stride=stride, dilation=dilation),
            functools.partial(
                native_convolution, stride=(stride, stride), dilation=dilation, groups=4
            ),
        )
        for stride in (1, 2)
        for dilation in (1, 2)
    ]
    assert_same_functions(pairs, x, kernel)


def test_pools_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    # The window of the top left pixel holds 0, 1, 3, 4 and five pixels of padding.
    assert operations.max_pool(x, 1)[0, 0, 0, 0] == 4
    assert operations.average_pool(x, 1)[0, 0, 0, 0] == 2
    np.testing.assert_array_equal(operations.max_pool(x, 2)[0, :, :, 0], [[4, 5], [7, 8]])
    np.testing.assert_array_equal(operations.average_pool(x, 2)[0, :, :, 0], [[2, 3], [5, 6]])


def test_shifted_windows_by_hand():
    x = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    windows = operations.shifted_windows(x, (3, 3), (1, 1))
    assert len(windows) == 9
    np.testing.assert_array_equal(windows[0][0, :, :, 0], [[0, 0], [0, 1]])
    np.testing.assert_array_equal(windows[5][0, :, :, 0], [[2, 0], [4, 0]])
