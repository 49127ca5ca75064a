"""ResNets as Flax's ImageNet example and Haiku write them: predicted, calibrated, evaluated."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from ghn_jax.tracing import calibrate_batch_stats

RNG = np.random.default_rng(0)
BATCHES = [RNG.standard_normal((8, 32, 32, 3)).astype(np.float32) for _ in range(2)]
# As published for 1000 classes, with a classifier of 512 or 2048 features for 10 instead.
NUM_18 = 11_689_512 - 990 * (512 + 1)
NUM_50 = 25_557_032 - 990 * (2048 + 1)


class Block(nn.Module):
    """A residual block, two or (bottleneck) three convolutions; layers come as partials."""

    filters: int
    conv: Callable
    norm: Callable
    stride: int
    is_bottleneck: bool

    @nn.compact
    def __call__(self, x):
        strides, kernels = [self.stride, 1], [3, 3]
        filters = [self.filters] * 2
        if self.is_bottleneck:
            strides, kernels, filters = [1, *strides], [1, 3, 1], [*filters, 4 * self.filters]
        y = x
        for index, (size, stride, count) in enumerate(zip(kernels, strides, filters, strict=True)):
            is_last = index == len(kernels) - 1
            y = self.conv(count, (size, size), (stride, stride))(y)
            # The last scale starts at zero: the block is the identity at first.
            start = nn.initializers.zeros_init() if is_last else nn.initializers.ones_init()
            y = self.norm(scale_init=start)(y)
            y = y if is_last else nn.relu(y)
        if x.shape != y.shape:
            x = self.conv(filters[-1], (1, 1), (self.stride,) * 2, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    stage_sizes: Sequence[int]
    is_bottleneck: bool = False

    @nn.compact
    def __call__(self, x, train=True):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=jnp.float32)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, axis_name="batch"
        )
        x = conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = nn.max_pool(nn.relu(norm(name="bn_init")(x)), (3, 3), strides=(2, 2), padding="SAME")
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Block(64 * 2**stage, conv, norm, stride, self.is_bottleneck)(x)
        return jnp.asarray(nn.Dense(10)(jnp.mean(x, axis=(1, 2))), jnp.float32)


def check(logits):
    """Finite, and different images have different logits."""
    assert logits.shape == (8, 10) and np.isfinite(logits).all()
    assert np.std(np.asarray(logits), axis=0).min() > 0


NETWORKS = {
    "small": (ResNet((1, 1), is_bottleneck=True), None),
    "18": (ResNet((2, 2, 2, 2)), NUM_18),
    "50": (ResNet((3, 4, 6, 3), is_bottleneck=True), NUM_50),
}


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("18", "50"))]
)
def test_flax(name):
    network, count = NETWORKS[name]
    prediction = ghn_jax.load("digits").predict(network, BATCHES[0], train=False, strict=True)
    if count is None:
        init = functools.partial(network.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), BATCHES[0])
        count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert prediction.num_parameters == count
    variables = calibrate_batch_stats(network, prediction.variables, BATCHES, train=True)
    evaluate = jax.jit(functools.partial(network.apply, train=False))
    check(evaluate(variables, BATCHES[0]))
    stem = nn.Conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], use_bias=False)
    outputs = [stem.apply({"params": variables["params"]["conv_init"]}, x) for x in BATCHES]
    expected = np.mean([np.var(y, axis=(0, 1, 2)) for y in outputs], axis=0)
    np.testing.assert_allclose(variables["batch_stats"]["bn_init"]["var"], expected, rtol=1e-3)


@pytest.mark.slow
def test_haiku():
    def forward(images, is_training):
        return haiku.nets.ResNet18(10)(images, is_training)

    network = haiku.transform_with_state(forward)
    with jax.numpy_dtype_promotion("standard"):  # its moving averages mix dtypes
        prediction = ghn_jax.load("digits").predict(
            network, BATCHES[0], is_training=True, strict=True
        )
        assert prediction.num_parameters == NUM_18
        variables = calibrate_batch_stats(network, prediction.variables, BATCHES, call_args=(True,))
        evaluate = jax.jit(functools.partial(network.apply, is_training=False))
        logits, state = evaluate(*variables, None, BATCHES[0])
    check(logits)
    jax.tree.map(np.testing.assert_array_equal, state, variables[1])
