"""EfficientNet-B0 (Tan and Le, ICML 2019) as in torchvision."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.models.layers import ConvNorm, ModuleWithOperations, StochasticDepth, conv, global_mean

# Expansion, kernel, stride, channels, blocks (table 1 of the paper).
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class MBConv(ModuleWithOperations):
    """Expand, depthwise, squeeze-and-excite, project; residual if the shape is unchanged."""

    features: int
    kernel: int
    stride: int
    expansion: int
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = x.shape[-1] * self.expansion
        conv_norm = functools.partial(ConvNorm, operations=self.operations)
        y = conv_norm(width, 1, activation=nn.silu)(x, train) if self.expansion > 1 else x
        y = conv_norm(width, self.kernel, self.stride, groups=width, activation=nn.silu)(y, train)
        gate = jnp.mean(y, axis=(1, 2), keepdims=True)
        gate = nn.silu(conv(max(1, x.shape[-1] // 4), 1, bias=True, groups=1)(gate))
        y = y * nn.sigmoid(conv(width, 1, bias=True)(gate))
        y = conv_norm(self.features, 1, activation=None)(y, train)
        return x + StochasticDepth(self.drop_rate)(y, train) if x.shape == y.shape else y


class EfficientNet(ModuleWithOperations):
    """(B, S, S, C) images -> (B, K) logits.

    Attributes:
        num_classes: Number of classes, K.
        dropout_rate: Dropout rate before the last layer.
        drop_rate: Stochastic depth rate of the last block.
        small_images: Whether the stem and the first stages have stride 1.
    """

    num_classes: int = 1000
    dropout_rate: float = 0.2
    drop_rate: float = 0.2
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv_norm = functools.partial(ConvNorm, activation=nn.silu, operations=self.operations)
        x = conv_norm(32, 3, 1 if self.small_images else 2)(x, train)
        depth, done = sum(stage[-1] for stage in _STAGES), 0
        for stage, (expansion, kernel, stride, features, num_blocks) in enumerate(_STAGES):
            if self.small_images and stage < 3:
                stride = 1
            for index in range(num_blocks):
                rate = self.drop_rate * done / depth
                block_stride, name = stride if index == 0 else 1, f"stage{stage}_block{index}"
                block = MBConv(
                    *(features, kernel, block_stride, expansion, rate),
                    operations=self.operations,
                    name=name,
                )
                x = block(x, train)
                done += 1
        x = global_mean(conv_norm(1280, 1)(x, train))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


def efficientnet_b0(**fields: Any) -> EfficientNet:
    """Build EfficientNet-B0."""
    return EfficientNet(**fields)
