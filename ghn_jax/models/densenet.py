"""DenseNet-121 (Huang et al., CVPR 2017) as in torchvision."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.models.layers import ModuleWithOperations, batch_norm, conv, global_mean, max_pool


class DenseLayer(ModuleWithOperations):
    """Norm, relu, 1x1 to 4 g channels, norm, relu, 3x3 to g channels, appended to the input.

    Attributes:
        growth: Number of channels appended, g.
    """

    growth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = functools.partial(batch_norm, train, self.operations)
        y = conv(4 * self.growth, 1)(nn.relu(norm()(x)))
        y = conv(self.growth, 3)(nn.relu(norm()(y)))
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(ModuleWithOperations):
    """(B, S, S, C) images -> (B, K) logits.

    Attributes:
        stage_sizes: Number of layers in each dense block.
        growth: Number of channels that every layer appends, g.
        num_classes: Number of classes, K.
        small_images: Whether the stem is 3x3 with stride 1 and no pool.
    """

    stage_sizes: tuple[int, ...]
    growth: int
    num_classes: int = 1000
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        kernel, stride = (3, 1) if self.small_images else (7, 2)
        norm = functools.partial(batch_norm, train, self.operations)
        x = nn.relu(norm()(conv(2 * self.growth, kernel, stride)(x)))
        if not self.small_images:
            x = max_pool(x, 3, 2)
        for stage, num_layers in enumerate(self.stage_sizes):
            if stage > 0:
                x = conv(x.shape[-1] // 2, 1)(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for index in range(num_layers):
                name = f"stage{stage}_layer{index}"
                x = DenseLayer(self.growth, operations=self.operations, name=name)(x, train)
        x = nn.relu(norm()(x))
        return nn.Dense(self.num_classes, name="head")(global_mean(x))


def densenet121(**fields: Any) -> DenseNet:
    """Build DenseNet-121."""
    return DenseNet((6, 12, 24, 16), 32, **fields)
