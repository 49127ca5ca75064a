"""Well-known networks in Flax linen, with torchvision's architectures and parameter counts.

`build("resnet50", num_classes=1000)` returns a module that takes NHWC images and the flag `train`,
and whose variables a GHN can predict. If an architecture has a stem for 224 px, `small_images`
replaces it by one for 32 px, with stride 1 and no pool.
"""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from ghn_jax.configuration.validation import (
    check_choice,
    check_flag,
    check_instance,
    check_positive_int,
    check_share,
    suggest,
)
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

__all__ = ["MODELS", "SMALL_MODELS", "build", "field_defaults", *MODELS, *SMALL_MODELS]


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
        **fields: Further fields of the network, such as `small_images=True`; `field_defaults`
            lists them.

    Returns:
        The module: (B, S, S, C) images -> (B, num_classes) logits.

    Raises:
        ValueError: If `name` is not a known network or it has no such field, in which case the
            message suggests the closest name, or if a value is invalid.
    """
    models = {**MODELS, **SMALL_MODELS}
    check_choice("name", name, tuple(models))
    check_positive_int("num_classes", num_classes)
    if operations is not None:
        check_instance("operations", operations, Operations, "Operations")
    defaults = field_defaults(name)
    for field, value in fields.items():
        if field not in defaults:
            raise ValueError(
                f"{name} has no field {field!r}{suggest(field, defaults)}, expected some of"
                f" {', '.join(defaults)}"
            )
        _check_field(field, value, defaults[field])
    module = models[name](num_classes=num_classes, **fields)
    return with_operations(module, operations or default_operations())


def field_defaults(name: str) -> dict[str, Any]:
    """Return the fields that `build` accepts for a network, with their defaults.

    Args:
        name: A name in `MODELS` or `SMALL_MODELS`.

    Returns:
        The defaults by field, without `num_classes` and `operations`.
    """
    make = {**MODELS, **SMALL_MODELS}[name]
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        # The function passes them on to the module that it returns.
        parameters = inspect.signature(inspect.get_annotations(make)["return"]).parameters
    chosen_here = ("num_classes", "operations", "parent", "name")
    return {
        field: parameter.default
        for field, parameter in parameters.items()
        if parameter.default is not parameter.empty and field not in chosen_here
    }


def _check_field(field: str, value: object, default: object) -> None:
    """Raise ValueError unless a value is of the same kind as the field's default."""
    if isinstance(default, bool):
        check_flag(field, value)
    elif isinstance(default, int):
        check_positive_int(field, value)
    else:  # a dropout or stochastic depth rate
        check_share(field, value)
