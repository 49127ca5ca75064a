"""Well-known networks in Flax linen, with torchvision's architectures and parameter counts.

`build("resnet50", num_classes=1000)` returns a module that takes NHWC images and the flag `train`,
and whose variables a GHN can predict. If an architecture has a stem for 224 px, `small_images`
replaces it by one for 32 px, with stride 1 and no pool.
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
    """Build a network by name.

    Args:
        name: A name in `MODELS`, or in `SMALL_MODELS`, which torchvision does not have.
        num_classes: Number of logits.
        operations: The operations the network computes with, see `ghn_jax.targets.spelling`. None
            means those that are fast on the backend and support every JAX transformation. Networks
            without batch norms and depthwise convolutions have no such choice.
        **fields: Further fields of the network, such as `small_images=True`.

    Returns:
        The module: (B, S, S, 3) images -> (B, num_classes) logits.

    Raises:
        ValueError: If `name` is not a known network; the message suggests the closest name.
    """
    models = {**MODELS, **SMALL_MODELS}
    if name not in models:
        near = difflib.get_close_matches(name, models, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"model is {name!r}, expected one of {', '.join(models)}{hint}")
    module = models[name](num_classes=num_classes, **fields)
    return with_operations(module, operations or default_operations())
