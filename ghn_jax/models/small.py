"""Small relatives of networks people use, for images of 8 to 32 px and studies on a CPU.

Their blocks are those of the large ones; they are narrower and less deep: 23 to 60 kernels instead
of 50 to 110.
"""

import functools

from ghn_jax.models.convnext import ConvNeXt
from ghn_jax.models.resnet import ResNetModule
from ghn_jax.models.vit import VisionTransformer


def _name(name, make):
    make.__name__ = name
    return make


# As ResNet-50: bottlenecks of 1x1, 3x3, 1x1, four times as wide outside, in three stages.
small_resnet = _name(
    "small_resnet", functools.partial(ResNetModule, (2, 2, 2), width=16, small_images=True)
)
# As ConvNeXt: depthwise 7x7, layer norm, MLPs of four times the width, layer scale.
small_convnext = _name(
    "small_convnext", functools.partial(ConvNeXt, (2, 2, 2), (16, 32, 64), patch_size=2)
)
# As ViT: patches, class token, positions, pre-norm encoder blocks.
small_vit = _name("small_vit", functools.partial(VisionTransformer, 4, 4, 32, 128, patch_size=2))
