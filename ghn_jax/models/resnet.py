"""ResNets (He et al., CVPR 2016) and Wide ResNets as in torchvision.

A bottleneck has its stride in the 3x3 convolution.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from ghn_jax.models.layers import ConvNorm, ModuleWithOperations, global_mean, max_pool, relu


class ResNetBlock(ModuleWithOperations):
    """relu(x + branch(x)), where the branch is two 3x3 convolutions or a 1x1, 3x3, 1x1 bottleneck.

    Attributes:
        width: Number of channels inside the branch.
        features: Number of output channels.
        stride: Stride of the block.
        is_bottleneck: Whether the branch is a bottleneck.
    """

    width: int
    features: int
    stride: int
    is_bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv_norm = functools.partial(ConvNorm, operations=self.operations)
        if self.is_bottleneck:
            y = conv_norm(self.width, 1)(x, train)
            y = conv_norm(self.width, 3, self.stride)(y, train)
            y = conv_norm(self.features, 1, activation=None)(y, train)
        else:
            y = conv_norm(self.width, 3, self.stride)(x, train)
            y = conv_norm(self.features, 3, activation=None)(y, train)
        if self.stride > 1 or x.shape[-1] != self.features:
            shortcut = conv_norm(self.features, 1, self.stride, activation=None, name="shortcut")
            x = shortcut(x, train)
        return relu(x + y)


class ResNetModule(ModuleWithOperations):
    """(B, S, S, C) images -> (B, K) logits.

    Attributes:
        stage_sizes: Number of blocks in each stage.
        num_classes: Number of classes, K.
        is_bottleneck: Whether blocks are bottlenecks.
        width_factor: Factor by which the middle of a bottleneck is widened.
        width: Number of channels of the stem, and inside the branches of the first stage.
        small_images: Whether the stem is 3x3 with stride 1 and no pool.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int = 1000
    is_bottleneck: bool = True
    width_factor: int = 1
    width: int = 64
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        kernel, stride = (3, 1) if self.small_images else (7, 2)
        stem = ConvNorm(self.width, kernel, stride, operations=self.operations, name="stem")
        x = stem(x, train)
        if not self.small_images:
            x = max_pool(x, 3, 2)
        for stage, num_blocks in enumerate(self.stage_sizes):
            width = self.width * 2**stage
            for index in range(num_blocks):
                x = ResNetBlock(
                    width * self.width_factor,
                    width * (4 if self.is_bottleneck else 1),
                    stride=2 if stage > 0 and index == 0 else 1,
                    is_bottleneck=self.is_bottleneck,
                    operations=self.operations,
                    name=f"stage{stage}_block{index}",
                )(x, train)
        return nn.Dense(self.num_classes, name="head")(global_mean(x))


def _make(name: str, *stage_sizes: int, **fields: Any) -> Callable[..., ResNetModule]:
    make = functools.partial(ResNetModule, stage_sizes, **fields)
    make.__name__ = name  # type: ignore[attr-defined]
    return make


resnet18 = _make("resnet18", 2, 2, 2, 2, is_bottleneck=False)
resnet34 = _make("resnet34", 3, 4, 6, 3, is_bottleneck=False)
resnet50 = _make("resnet50", 3, 4, 6, 3)
resnet101 = _make("resnet101", 3, 4, 23, 3)
resnet152 = _make("resnet152", 3, 8, 36, 3)
wide_resnet50_2 = _make("wide_resnet50_2", 3, 4, 6, 3, width_factor=2)
wide_resnet101_2 = _make("wide_resnet101_2", 3, 4, 23, 3, width_factor=2)
