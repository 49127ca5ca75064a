"""MobileNetV2 (Sandler et al., CVPR 2018) as in torchvision."""

import functools
from typing import Any

import flax.linen as nn
import jax

from ghn_jax.models.layers import ConvNorm, ModuleWithOperations, global_mean

# Expansion, channels, blocks, stride of the first block (table 2 of the paper).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(ModuleWithOperations):
    """Expand by 1x1, depthwise 3x3, project by 1x1; residual if the shape is unchanged."""

    features: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = x.shape[-1] * self.expansion
        conv_norm = functools.partial(ConvNorm, operations=self.operations)
        y = conv_norm(width, 1, activation=nn.relu6)(x, train) if self.expansion > 1 else x
        y = conv_norm(width, 3, self.stride, groups=width, activation=nn.relu6)(y, train)
        y = conv_norm(self.features, 1, activation=None)(y, train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(ModuleWithOperations):
    """(B, S, S, C) images -> (B, K) logits.

    Attributes:
        num_classes: Number of classes, K.
        dropout_rate: Dropout rate before the last layer.
        small_images: Whether the stem and the first stages have stride 1.
    """

    num_classes: int = 1000
    dropout_rate: float = 0.2
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv_norm = functools.partial(ConvNorm, activation=nn.relu6, operations=self.operations)
        x = conv_norm(32, 3, 1 if self.small_images else 2)(x, train)
        for stage, (expansion, features, num_blocks, stride) in enumerate(_STAGES):
            if self.small_images and stage < 3:
                stride = 1
            for index in range(num_blocks):
                name = f"stage{stage}_block{index}"
                block_stride = stride if index == 0 else 1
                block = InvertedResidual(
                    features, block_stride, expansion, operations=self.operations, name=name
                )
                x = block(x, train)
        x = global_mean(conv_norm(1280, 1)(x, train))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


def mobilenet_v2(**fields: Any) -> MobileNetV2:
    """Build MobileNetV2 with width multiplier 1."""
    return MobileNetV2(**fields)
