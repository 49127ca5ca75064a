"""Decoders by name: `register_decoder("mine")(Mine)`, and what a config may name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from ghn_jax.configuration.variants import VariantConfig, Variants

_M = TypeVar("_M", bound=type)


@dataclasses.dataclass(frozen=True)
class DecoderConfig(VariantConfig):
    """Which decoder; that of each variant is `Module.Config`."""


DECODERS = Variants(
    "the decoder",
    DecoderConfig,
    "register_decoder",
    provided=("hidden_size", "max_shape", "num_classes", "reverse_only"),
)


def register_decoder(name: str) -> Callable[[_M], _M]:
    """Make a decoder known to configs by a name; a decorator of its class, see `Decoder`.

    Args:
        name: For `ghn.decoder.name`. The fields that the class has beyond those of `Decoder`, all
            with defaults, become fields beside it.

    Returns:
        The decorator.

    Raises:
        ValueError: If another class has the name, or a field of the class has no default.
    """
    return DECODERS.register(name)
