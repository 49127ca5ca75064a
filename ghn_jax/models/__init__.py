"""Networks people use, in Flax linen, with torchvision's architectures and parameter counts.

In: `build("resnet50", num_classes=1000)`. Out: a module of NHWC images and `train`, whose variables
a GHN predicts. Where an architecture has a stem for 224 px, `small_images` replaces it by one for
32 px: stride 1, no pool.
"""

import difflib
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from ghn_jax.models.convnext import convnext_b, convnext_l, convnext_s, convnext_t
from ghn_jax.models.densenet import densenet121
from ghn_jax.models.efficientnet import efficientnet_b0
from ghn_jax.models.mobilenet import mobilenet_v2
from ghn_jax.models.resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    wide_resnet50_2,
    wide_resnet101_2,
)
from ghn_jax.models.small import small_convnext, small_resnet, small_vit
from ghn_jax.models.swin import swin_t
from ghn_jax.models.vgg import vgg16_bn
from ghn_jax.models.vit import deepnets_vit, vit_b16, vit_l16
from ghn_jax.targets.operations import Operations
from ghn_jax.targets.spelling import default_operations, with_operations

MODELS: dict[str, Callable[..., nn.Module]] = {
    make.__name__: make
    for make in (
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
        wide_resnet50_2,
        wide_resnet101_2,
        vit_b16,
        vit_l16,
        deepnets_vit,
        convnext_t,
        convnext_s,
        convnext_b,
        convnext_l,
        mobilenet_v2,
        efficientnet_b0,
        swin_t,
        vgg16_bn,
        densenet121,
    )
}
SMALL_MODELS: dict[str, Callable[..., nn.Module]] = {
    make.__name__: make for make in (small_resnet, small_convnext, small_vit)
}

__all__ = ["MODELS", "SMALL_MODELS", "build", *MODELS, *SMALL_MODELS]


def build(
    name: str, num_classes: int = 1000, *, operations: Operations | None = None, **fields: Any
) -> nn.Module:
    """Make a network.

    Args:
        name: One of `MODELS`, or of `SMALL_MODELS`, which are none of torchvision's.
        num_classes: Width of the output.
        operations: What it computes with, see `ghn_jax.targets.spelling`; None is what the backend
            is fast at, through which every transformation of JAX passes. Networks without batch
            norms and depthwise convolutions have nothing to choose.
        **fields: Of the network, such as `small_images=True`.

    Returns:
        The module: (B, S, S, 3) images -> (B, num_classes) logits.

    Raises:
        ValueError: If there is no such network; names the nearest.
    """
    models = {**MODELS, **SMALL_MODELS}
    if name not in models:
        near = difflib.get_close_matches(name, models, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"model is {name!r}, expected one of {', '.join(models)}{hint}")
    module = models[name](num_classes=num_classes, **fields)
    return with_operations(module, operations or default_operations())
