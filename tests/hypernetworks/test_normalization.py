"""Normalisation of predicted parameters, by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.hypernetworks.normalization import kernel_factor, normalize_bias, normalize_scale


@pytest.mark.parametrize(
    ("shape", "role", "expected"),
    [
        ((3, 3, 16, 32), "kernel", 1 / math.sqrt(72)),  # sqrt(2 / 144)
        ((1, 1, 8, 64), "kernel", 0.5),  # sqrt(2 / 8)
        ((50, 10), "classifier_kernel", 0.2),  # sqrt(2 / 50)
        ((5, 5, 1, 32), "depthwise", 0.2),  # sqrt(1 / 25)
        ((1, 7, 7, 64), "kernel", 1 / 7),  # sqrt(1 / 49): the 7x1 kernel follows, not a relu
        ((7, 1, 14, 64), "kernel", 1 / 7),  # sqrt(2 / 98)
        ((1, 11, 11, 48), "position", 1.0),
        ((50_000, 64), "embedding", 0.125),  # 1 / sqrt(64): a lookup takes one row
    ],
)
def test_factors_by_hand(shape, role, expected):
    assert kernel_factor(shape, role) == pytest.approx(expected, rel=1e-12)


def test_unit_variance_goes_through_a_kernel_with_relu():
    # A sum of fan_in terms w relu(x) has variance fan_in var(w) E[relu(x)^2] = fan_in factor^2 / 2.
    shape = (3, 3, 20, 8)
    rng = np.random.default_rng(0)
    kernel = kernel_factor(shape, "kernel") * rng.standard_normal((180, 400))
    outputs = np.maximum(rng.standard_normal((400, 180)), 0.0) @ kernel
    assert outputs.std() == pytest.approx(1.0, rel=0.02)


def test_scales_and_biases_are_bounded_and_start_at_the_identity():
    x = jnp.array([-100.0, 0.0, 2.0, 100.0])
    np.testing.assert_allclose(normalize_scale(x), [0, 1, 2 / (1 + math.exp(-1)), 2], atol=1e-6)
    np.testing.assert_allclose(normalize_bias(x), [-1, 0, math.tanh(0.4), 1], atol=1e-6)
