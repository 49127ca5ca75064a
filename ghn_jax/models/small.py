"""Small relatives of well-known networks, for images of 8 to 32 px and studies on a CPU.

They have the same blocks as the large networks but are narrower and shallower, with 23 to 60
kernels instead of 50 to 110.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn

from ghn_jax.models.convnext import ConvNeXt
from ghn_jax.models.resnet import ResNetModule
from ghn_jax.models.vit import VisionTransformer

_Module = TypeVar("_Module", bound=nn.Module)


def _name(name: str, make: functools.partial[_Module]) -> Callable[..., _Module]:
    make.__name__ = name  # type: ignore[attr-defined]
    return make


# Like ResNet-50: 1x1, 3x3, 1x1 bottlenecks, four times as wide outside, in three stages.
small_resnet = _name(
    "small_resnet", functools.partial(ResNetModule, (2, 2, 2), width=16, small_images=True)
)
# Like ConvNeXt: depthwise 7x7, layer norm, MLPs of four times the width, layer scale.
small_convnext = _name(
    "small_convnext", functools.partial(ConvNeXt, (2, 2, 2), (16, 32, 64), patch_size=2)
)
# Like ViT: patches, class token, positions, pre-norm encoder blocks.
small_vit = _name("small_vit", functools.partial(VisionTransformer, 4, 4, 32, 128, patch_size=2))
