"""Layers that several families share, with PyTorch's padding and epsilons."""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ghn_jax.targets.operations import NATIVE, Operations, moments

ActivationFn = Callable[[jax.Array], jax.Array]


class ModuleWithOperations(nn.Module, kw_only=True):
    """Base of the modules that compute with chosen operations, or have parts that do.

    Attributes:
        operations: See `ghn_jax.targets.spelling`.
    """

    operations: Operations = dataclasses.field(default=NATIVE, repr=False)


def he_by_fan_out(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Normal with variance 2 / (kh kw out), torchvision's for convolutions."""
    std = math.sqrt(2 / math.prod((*shape[:-2], shape[-1])))
    return lax.mul(jax.random.normal(key, shape, dtype), lax.full(shape, std, dtype))


def relu(x: jax.Array) -> jax.Array:
    """relu in three primitives: `nn.relu` is a call with a derivative, which is traced slower."""
    zeros = lax.full_like(x, 0)
    return lax.select(lax.le(x, zeros), zeros, x)


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    bias: bool = False,
    groups: int = 1,
    operations: Operations = NATIVE,
) -> nn.Conv:
    """A convolution padded by half its odd kernel."""
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        feature_group_count=groups,
        conv_general_dilated=functools.partial(convolve_groups, operations),
        use_bias=bias,
        kernel_init=he_by_fan_out,
    )


def convolve_groups(operations: Operations, x, kernel, strides, padding, **arguments):
    """`lax.conv_general_dilated`, depthwise ones by the operations chosen.

    For `nn.Conv(conv_general_dilated=...)` with odd kernels padded by half their size.
    """
    is_depthwise = arguments["feature_group_count"] == kernel.shape[-1] == x.shape[-1] > 1
    if is_depthwise and strides[0] == strides[1]:
        return operations.convolve_depthwise(x, kernel, strides[0], 1, False)
    return lax.conv_general_dilated(x, kernel, strides, padding, **arguments)


class BatchNorm(ModuleWithOperations):
    """Batch norm as PyTorch's: two passes over the batch, an unbiased running variance.

    Tracing a network of many norms takes half as long as with Flax's own.

    Attributes:
        use_running_average: Whether running statistics are used, not the batch's.
        epsilon: Added to the variance.
        momentum: What running statistics keep of themselves.
    """

    use_running_average: bool
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x):
        shape = x.shape[-1:]
        zeros, ones = (lambda *_, v=v: lax.full(shape, v, jnp.float32) for v in (0.0, 1.0))
        mean = self.variable("batch_stats", "mean", zeros)
        var = self.variable("batch_stats", "var", ones)
        scale, bias = self.param("scale", ones), self.param("bias", zeros)
        if not self.use_running_average:
            if not self.is_initializing():
                batch_mean, batch_var = moments(x)
                count = x.size // shape[0]
                keep, new = self.momentum, 1 - self.momentum
                mean.value = keep * mean.value + new * batch_mean
                unbiased = batch_var * (count / max(count - 1, 1))
                var.value = keep * var.value + new * unbiased
            return self.operations.batch_norm(x, scale, bias, self.epsilon)
        # In the primitives themselves: each function of jnp is traced as a call, which adds up.
        as_image = lambda v: lax.broadcast_in_dim(v, x.shape, (x.ndim - 1,))  # noqa: E731
        epsilon = np.asarray(self.epsilon, var.value.dtype)
        factor = lax.mul(scale, lax.rsqrt(lax.add(var.value, epsilon)))
        centred = lax.sub(x, as_image(mean.value))
        return lax.add(lax.mul(centred, as_image(factor)), as_image(bias))


def batch_norm(train: bool, operations: Operations = NATIVE) -> BatchNorm:
    """Batch norm on the batch's statistics in training, else on running ones."""
    return BatchNorm(not train, operations=operations)


def layer_norm() -> nn.LayerNorm:
    """Layer norm with the epsilon of torchvision's transformers."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)


class ConvNorm(ModuleWithOperations):
    """Convolution without bias, batch norm, [activation].

    Attributes:
        features: Output channels.
        kernel: Size of the kernel.
        stride: Of both axes.
        groups: Of the channels.
        activation: None for none.
    """

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    activation: ActivationFn | None = relu

    @nn.compact
    def __call__(self, x, train: bool = False):
        operations = self.operations
        convolve = conv(
            self.features, self.kernel, self.stride, groups=self.groups, operations=operations
        )
        x = batch_norm(train, operations)(convolve(x))
        return x if self.activation is None else self.activation(x)


class StochasticDepth(nn.Module):
    """Drop the whole branch of an example with probability `rate` in training."""

    rate: float

    @nn.compact
    def __call__(self, x, train: bool = False):
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=axes, deterministic=not train)(x)


def max_pool(x: jax.Array, kernel: int, stride: int) -> jax.Array:
    """Max pooling padded by half its kernel, if that is odd."""
    padding = kernel // 2 if kernel % 2 else 0
    return nn.max_pool(x, (kernel, kernel), (stride, stride), [(padding, padding)] * 2)


def global_mean(x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, C)."""
    return jnp.mean(x, axis=(1, 2))
