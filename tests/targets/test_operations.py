"""Every spelling of an operation equals the native one, in values and gradients; cases by hand.

In float64, where no relu or maximum flips on rounding and tolerances can be tight.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain_composition import jit

from ghn_jax.targets import operations
from ghn_jax.targets.cpu import attention, convolution, normalization, pooling

LAYOUT = ("NHWC", "HWIO", "NHWC")


def native_convolution(x, kernel, stride, dilation=1, groups=1, activate=False):
    padding = [(dilation * (size // 2),) * 2 for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        jax.nn.relu(x) if activate else x,
        kernel,
        stride,
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def with_gradients(fn, *arguments):
    """The value, and all gradients with a cotangent that tells positions apart."""
    value, pull_back = jax.vjp(fn, *arguments)
    cotangent = jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
    return value, *pull_back(cotangent)


def assert_same_functions(groups, *arguments):
    """The functions of each tuple agree; all are one program, since compiling takes the time."""
    results = jit(lambda *args: [[with_gradients(fn, *args) for fn in fns] for fns in groups])(
        *arguments
    )
    for *others, expected in results:
        for actual in others:
            for a, e in zip(actual, expected, strict=True):
                assert a.dtype == e.dtype == jnp.float64
                np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


# Sides of 1, 4, 8 and 9: images of at most 4 and 16 pixels are computed in other ways.
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1)])
@pytest.mark.parametrize("image_size", [1, 4, 8, 9])
def test_convolve_equals_native(x64, kernel_size, image_size):
    x, kernel = normal(0, 2, image_size, image_size, 3), normal(1, *kernel_size, 3, 4)
    strides = [(1, 1), (2, 2)]
    strides += {(1, 7): [(1, 2)], (7, 1): [(2, 1)]}.get(kernel_size, [])
    pairs = [
        tuple(
            functools.partial(fn, stride=stride, activate=activate)
            for fn in (
                convolution.convolve,
                convolution.convolve_with_adjoint,
                operations.convolve,
                native_convolution,
            )
        )
        for stride in strides
        for activate in (False, True)
    ]
    assert_same_functions(pairs, x, kernel)


@pytest.mark.parametrize("image_size", [1, 4, 7, 12])
def test_gradient_by_parity_equals_native(x64, image_size):
    # Also where the engine chooses another way: it is right for all shapes.
    for kernel_size in (3, 7):
        x, kernel = normal(0, 2, image_size, image_size, 3), normal(1, *[kernel_size] * 2, 3, 4)
        y, pull_back = jax.vjp(lambda x, k=kernel: native_convolution(x, k, (2, 2)), x)
        dy = normal(2, *y.shape)
        actual = convolution.input_gradient_by_parity(dy, kernel, (2, 2), x.shape)
        np.testing.assert_allclose(actual, pull_back(dy)[0], rtol=1e-10, atol=1e-10)


# Weight gradients of one image, of two and of all at a time.
@pytest.mark.parametrize(
    ("kernel_size", "image_size", "batch_size", "num_cached"),
    [(3, 1, 4, 2**15), (3, 7, 3, 2**15), (5, 4, 4, 4 * 4 * 4 * 3), (5, 12, 4, 100)],
)
def test_depthwise_equals_native(x64, monkeypatch, kernel_size, image_size, batch_size, num_cached):
    monkeypatch.setattr(convolution, "_CACHED_ELEMENTS", num_cached)
    x = normal(0, batch_size, image_size, image_size, 4)
    kernel = normal(1, kernel_size, kernel_size, 1, 4)
    pairs = [
        (
            *(
                functools.partial(fn, stride=stride, dilation=dilation, activate=activate)
                for fn in (
                    convolution.convolve_depthwise,
                    convolution.convolve_depthwise_with_adjoint,
                    operations.convolve_depthwise,
                )
            ),
            functools.partial(
                native_convolution,
                stride=(stride, stride),
                dilation=dilation,
                groups=4,
                activate=activate,
            ),
        )
        for stride in (1, 2)
        for dilation in (1, 2)
        for activate in (False, True)
    ]
    assert_same_functions(pairs, x, kernel)


@pytest.mark.parametrize("image_size", [1, 2, 5, 8])
def test_max_pool_equals_native(x64, image_size):
    # Three levels below zero, which padding must not beat: most windows hold their maximum twice.
    levels = np.random.default_rng(0).integers(-3, 0, (4, image_size, image_size + 1, 3))
    pairs = [
        tuple(
            functools.partial(fn, stride=stride)
            for fn in (pooling.max_pool, pooling.max_pool_with_adjoint, operations.max_pool)
        )
        for stride in (1, 2)
    ]
    assert_same_functions(pairs, jnp.asarray(levels, jnp.float64))


@pytest.mark.parametrize(
    "max_pool", [operations.max_pool, pooling.max_pool, pooling.max_pool_with_adjoint]
)
def test_pools_by_hand(max_pool):
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    # The window of the top left pixel holds 0, 1, 3, 4 and five pixels of padding.
    assert max_pool(x, 1)[0, 0, 0, 0] == 4
    assert operations.average_pool(x, 1)[0, 0, 0, 0] == 2
    np.testing.assert_array_equal(max_pool(x, 2)[0, :, :, 0], [[4, 5], [7, 8]])
    np.testing.assert_array_equal(operations.average_pool(x, 2)[0, :, :, 0], [[2, 3], [5, 6]])
    # 4 is the maximum of one window, 5 and 7 of two each, 8 of the other four.
    gradient = jax.grad(lambda x: max_pool(x, 1).sum())(x)[0, :, :, 0]
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [0, 1, 2], [0, 2, 4]])
    # On ties the first pixel of each window takes it.
    gradient = jax.grad(lambda x: max_pool(x, 1).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[4, 0], [0, 0]])


def test_batch_norm_equals_its_formula(x64):
    def formula(x, scale, bias):
        mean = x.mean(axis=(0, 1, 2), keepdims=True)
        var = jnp.square(x - mean).mean(axis=(0, 1, 2), keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale.reshape(1, 1, 1, -1) + bias.reshape(
            1, 1, 1, -1
        )

    x = 3 * normal(0, 4, 5, 6, 7) + 10
    norms = (operations.batch_norm, normalization.batch_norm_with_adjoint)
    norms = [lambda *a, fn=fn: fn(*a, 1e-5) for fn in norms]
    assert_same_functions([(*norms, formula)], x, normal(1, 7), normal(2, 7))


@pytest.mark.parametrize(
    "batch_norm", [operations.batch_norm, normalization.batch_norm_with_adjoint]
)
def test_batch_norm_of_half_precision_has_float32_statistics(batch_norm):
    # Around 1000, bfloat16 steps by 4: sums of a thousand values would lose all digits.
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 8, 8, 2)) * 50 + 1000)
    x = x.astype(jnp.bfloat16)
    scale, bias = jnp.ones(2), jnp.zeros(2)
    y = batch_norm(x, scale, bias, 1e-5)
    exact = np.asarray(x.astype(jnp.float32), np.float64)
    exact = (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.02)


def test_attention_equals_its_formula(x64):
    def formula(qkv):
        query, key, value = jnp.moveaxis(qkv.reshape(2, 9, 3, 4, 5), 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(5)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)
        return y.reshape(2, 9, 20)

    # Large logits: their exponentials would overflow were the row's maximum not subtracted.
    x = 30 * normal(0, 2, 9, 60)
    attentions = (operations.attend, attention.attend_with_adjoint)
    assert_same_functions([(*(lambda x, fn=fn: fn(x, 4) for fn in attentions), formula)], x)


def test_shifted_windows_by_hand():
    x = jnp.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    windows = convolution.shifted_windows(x, (3, 3), (1, 1))
    assert len(windows) == 9
    np.testing.assert_array_equal(windows[0][0, :, :, 0], [[0, 0], [0, 1]])
    np.testing.assert_array_equal(windows[5][0, :, :, 0], [[2, 0], [4, 0]])
