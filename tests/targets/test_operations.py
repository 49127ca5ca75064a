"""Every CPU implementation equals the native one, in values and gradients; a case by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

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


def assert_same_function(actual_fn, expected_fn, *arguments):
    """Values and gradients of all arguments, with a cotangent that tells positions apart."""
    actual, actual_vjp = jax.vjp(actual_fn, *arguments)
    expected, expected_vjp = jax.vjp(expected_fn, *arguments)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.cos(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    for a, e in zip(actual_vjp(cotangent), expected_vjp(cotangent), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1)])
@pytest.mark.parametrize("image_size", [1, 2, 4, 8, 9])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2)])
def test_convolve_equals_native(kernel_size, image_size, stride):
    key_x, key_w = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key_x, (2, image_size, image_size, 3))
    kernel = jax.random.normal(key_w, (*kernel_size, 3, 4))
    assert_same_function(
        lambda x, w: operations.convolve(x, w, stride),
        lambda x, w: native_convolution(x, w, stride),
        x,
        kernel,
    )


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("image_size", [1, 4, 7])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_depthwise_equals_native(kernel_size, image_size, stride, dilation):
    key_x, key_w = jax.random.split(jax.random.key(1))
    x = jax.random.normal(key_x, (3, image_size, image_size, 4))
    kernel = jax.random.normal(key_w, (kernel_size, kernel_size, 1, 4))
    assert_same_function(
        lambda x, w: operations.convolve_depthwise(x, w, stride, dilation),
        lambda x, w: native_convolution(x, w, (stride, stride), dilation, groups=4),
        x,
        kernel,
    )


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
