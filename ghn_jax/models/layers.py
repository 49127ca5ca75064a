"""Layers shared by several families of networks, with PyTorch's padding and epsilons."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ghn_jax.targets.operations import NATIVE, Operations, moments

ActivationFn = Callable[[jax.Array], jax.Array]


class ModuleWithOperations(nn.Module, kw_only=True):
    """Base class of modules that use chosen operations, or whose submodules do.

    Attributes:
        operations: The operations the module computes with, see `ghn_jax.targets.spelling`.
    """

    operations: Operations = dataclasses.field(default=NATIVE, repr=False)


def he_by_fan_out(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draw from a normal with variance 2 / (kh kw out), as torchvision does for convolutions."""
    std = math.sqrt(2 / math.prod((*shape[:-2], shape[-1])))
    return lax.mul(jax.random.normal(key, shape, dtype), lax.full(shape, std, dtype))


def relu(x: jax.Array) -> jax.Array:
    """Compute relu in three primitives; `nn.relu` is a custom_jvp call, which traces slower."""
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
    """Build a convolution that is padded by half its odd kernel size."""
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


def convolve_groups(
    operations: Operations,
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    padding: Any,
    **arguments: Any,
) -> jax.Array:
    """Call `lax.conv_general_dilated`, or the chosen operations if the convolution is depthwise.

    This is for `nn.Conv(conv_general_dilated=...)` with odd kernels, padded by half their size.

    Args:
        operations: The operations that compute depthwise convolutions.
        x: (B, H, W, I) images.
        kernel: (kh, kw, I / groups, O) kernel.
        strides: Strides along height and width.
        padding: Padding as `lax.conv_general_dilated` takes it.
        **arguments: Further arguments of `lax.conv_general_dilated`.

    Returns:
        (B, H', W', O).
    """
    is_depthwise = arguments["feature_group_count"] == kernel.shape[-1] == x.shape[-1] > 1
    if is_depthwise and strides[0] == strides[1]:
        return operations.convolve_depthwise(x, kernel, strides[0], 1, False)
    return lax.conv_general_dilated(x, kernel, strides, padding, **arguments)


class BatchNorm(ModuleWithOperations):
    """Batch norm as in PyTorch: two passes over the batch, and an unbiased running variance.

    Tracing a network with many norms takes half as long as with Flax's own.

    Attributes:
        use_running_average: Whether to use running statistics instead of the batch's.
        epsilon: Constant added to the variance.
        momentum: Share of the running statistics that is kept in every update.
    """

    use_running_average: bool
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
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
        # Written in primitives: each jnp function is traced as a call of its own, which adds up.
        as_image = lambda v: lax.broadcast_in_dim(v, x.shape, (x.ndim - 1,))  # noqa: E731
        epsilon = np.asarray(self.epsilon, var.value.dtype)
        factor = lax.mul(scale, lax.rsqrt(lax.add(var.value, epsilon)))
        centred = lax.sub(x, as_image(mean.value))
        return lax.add(lax.mul(centred, as_image(factor)), as_image(bias))


def batch_norm(train: bool, operations: Operations = NATIVE) -> BatchNorm:
    """Build a batch norm that uses batch statistics in training and running ones otherwise."""
    return BatchNorm(not train, operations=operations)


def layer_norm() -> nn.LayerNorm:
    """Build a layer norm with the epsilon of torchvision's transformers."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)


class ConvNorm(ModuleWithOperations):
    """A convolution without bias, batch norm, and an optional activation.

    Attributes:
        features: Number of output channels.
        kernel: Kernel size.
        stride: Stride along both axes.
        groups: Number of channel groups.
        activation: The activation function; None applies none.
    """

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    activation: ActivationFn | None = relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        operations = self.operations
        convolve = conv(
            self.features, self.kernel, self.stride, groups=self.groups, operations=operations
        )
        x = batch_norm(train, operations)(convolve(x))
        return x if self.activation is None else self.activation(x)


class StochasticDepth(nn.Module):
    """Drop the whole branch for an example with probability `rate` in training."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=axes, deterministic=not train)(x)


def max_pool(x: jax.Array, kernel: int, stride: int) -> jax.Array:
    """Take maxima over windows that are padded by half their size if it is odd."""
    padding = kernel // 2 if kernel % 2 else 0
    return nn.max_pool(x, (kernel, kernel), (stride, stride), [(padding, padding)] * 2)


def global_mean(x: jax.Array) -> jax.Array:
    """Average over pixels: (B, H, W, C) -> (B, C)."""
    return jnp.mean(x, axis=(1, 2))
