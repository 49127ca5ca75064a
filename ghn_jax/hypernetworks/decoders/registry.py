"""Decoders by name: `register_decoder("mine")(Mine)` makes one available to configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from ghn_jax.configuration.variants import VariantConfig, Variants

_M = TypeVar("_M", bound=type)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(VariantConfig):
    """Chooses a decoder; each variant has its own subclass, `Module.Config`."""


DECODERS = Variants(
    "the decoder",
    DecoderConfig,
    "register_decoder",
    provided=("hidden_size", "max_shape", "num_classes", "reverse_only"),
)


def register_decoder(name: str) -> Callable[[_M], _M]:
    """Register a decoder class under a name that configs can use.

    Args:
        name: The value of `ghn.decoder.name` that selects it. The class's fields beyond those of
            `Decoder`, all of which need defaults, become config fields next to `name`.

    Returns:
        A decorator for the class; see `Decoder`.

    Raises:
        ValueError: If another class has the name, or a field of the class has no default.
    """
    return DECODERS.register(name)
