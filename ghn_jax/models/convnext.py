"""ConvNeXt (Liu et al., CVPR 2022) as in torchvision."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from ghn_jax.models.layers import (
    ModuleWithOperations,
    StochasticDepth,
    convolve_groups,
    global_mean,
    layer_norm,
)


class ConvNeXtBlock(ModuleWithOperations):
    """x + scale * MLP(LN(depthwise_7x7(x)))."""

    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        features = x.shape[-1]
        y = nn.Conv(
            features,
            (7, 7),
            padding=3,
            feature_group_count=features,
            conv_general_dilated=functools.partial(convolve_groups, self.operations),
        )(x)
        y = nn.gelu(nn.Dense(4 * features)(layer_norm()(y)), approximate=False)
        y = nn.Dense(features)(y)
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (1, 1, 1, features))
        return x + StochasticDepth(self.drop_rate)(y * scale, train)


class ConvNeXt(ModuleWithOperations):
    """(B, S, S, C) images -> (B, K) logits.

    Attributes:
        stage_sizes: Number of blocks in each stage.
        widths: Number of channels in each stage.
        num_classes: Number of classes, K.
        drop_rate: Stochastic depth rate of the last block.
        small_images: Whether the stem has patches of 1 px instead of `patch_size`.
        patch_size: Patch size of the stem, in pixels.
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    num_classes: int = 1000
    drop_rate: float = 0.0
    small_images: bool = False
    patch_size: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        depth, index = sum(self.stage_sizes), 0
        for stage, (num_blocks, width) in enumerate(
            zip(self.stage_sizes, self.widths, strict=True)
        ):
            if stage == 0:
                patch = (1 if self.small_images else self.patch_size,) * 2
                x = layer_norm()(nn.Conv(width, patch, strides=patch, padding="VALID")(x))
            else:
                x = nn.Conv(width, (2, 2), strides=(2, 2), padding="VALID")(layer_norm()(x))
            for _ in range(num_blocks):
                rate, name = self.drop_rate * index / max(depth - 1, 1), f"block{index}"
                x = ConvNeXtBlock(rate, operations=self.operations, name=name)(x, train)
                index += 1
        return nn.Dense(self.num_classes, name="head")(layer_norm()(global_mean(x)))


def _make(name: str, depth: int, width: int) -> Callable[..., ConvNeXt]:
    widths = tuple(width * 2**stage for stage in range(4))
    make = functools.partial(ConvNeXt, (3, 3, depth, 3), widths)
    make.__name__ = name  # type: ignore[attr-defined]
    return make


convnext_t = _make("convnext_t", 9, 96)
convnext_s = _make("convnext_s", 27, 96)
convnext_b = _make("convnext_b", 27, 128)
convnext_l = _make("convnext_l", 27, 192)
