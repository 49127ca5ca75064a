"""Layers that several families share, with PyTorch's padding and epsilons."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ghn_jax.targets.operations import convolve_depthwise

Activation = Callable[[jax.Array], jax.Array]


def conv(features: int, kernel: int, stride: int = 1, *, bias: bool = False, groups: int = 1):
    """A convolution padded by half its odd kernel."""
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        feature_group_count=groups,
        conv_general_dilated=convolve_groups,
        use_bias=bias,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    )


def convolve_groups(x, kernel, strides, padding, **arguments):
    """`lax.conv_general_dilated`, depthwise ones spelled as the backend is fast at.

    For `nn.Conv(conv_general_dilated=...)` with odd kernels padded by half their size.
    """
    is_depthwise = arguments["feature_group_count"] == kernel.shape[-1] == x.shape[-1] > 1
    if is_depthwise and strides[0] == strides[1]:
        return convolve_depthwise(x, kernel, strides[0])
    return lax.conv_general_dilated(x, kernel, strides, padding, **arguments)


def batch_norm(train: bool, epsilon: float = 1e-5) -> nn.BatchNorm:
    """Batch norm on the batch's statistics in training, else on running ones."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon)


def layer_norm() -> nn.LayerNorm:
    """Layer norm with the epsilon of torchvision's transformers."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)


class ConvNorm(nn.Module):
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
    activation: Activation | None = nn.relu

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = conv(self.features, self.kernel, self.stride, groups=self.groups)(x)
        x = batch_norm(train)(x)
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
