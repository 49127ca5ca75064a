"""The choices that make a hypernetwork a GHN-1, a GHN-2 or an MLP (docs/method.md, 'Variants')."""

import dataclasses
import math
from typing import Any

from ghn_jax.configuration import limits
from ghn_jax.configuration.conversion import build_variant, to_dictionary
from ghn_jax.configuration.validation import (
    as_tuple,
    check_choice,
    check_positive_int,
    describe_value,
)
from ghn_jax.hypernetworks.decoders import DECODERS, DecoderConfig
from ghn_jax.hypernetworks.message_passing import MESSAGE_PASSING, MessagePassingConfig


@dataclasses.dataclass(frozen=True)
class GHNConfig:
    """Configuration of a hypernetwork; it travels with the parameters in a checkpoint.

    Attributes:
        num_classes: number of classes that the target networks predict.
        hidden_size: width D of node embeddings, a multiple of 4.
        max_shape: largest tile (out, in, height, width); larger parameters repeat it.
        message_passing: how nodes exchange information: a variant's config, or its name.
        virtual_edges: longest distance that a virtual edge spans, 2..250; 1 means none.
        layer_norm: whether node embeddings are layer-normalised before decoding.
        normalize_parameters: whether predicted parameters are scaled by their fan-in.
        decoder: how kernels are decoded: a variant's config, or its name.
    """

    num_classes: int = 10
    hidden_size: int = 32
    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)
    message_passing: MessagePassingConfig = MESSAGE_PASSING.config("gated_gnn")
    virtual_edges: int = 50
    layer_norm: bool = True
    normalize_parameters: bool = True
    decoder: DecoderConfig = DECODERS.config("conv")

    def __post_init__(self) -> None:
        check_positive_int("num_classes", self.num_classes, limits.NUM_CLASSES)
        if type(self.hidden_size) is not int or self.hidden_size < 4 or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size is {describe_value(self.hidden_size)}, expected a positive multiple"
                " of 4"
            )
        check_positive_int("hidden_size", self.hidden_size, limits.HIDDEN_SIZE)
        object.__setattr__(self, "max_shape", as_tuple("max_shape", self.max_shape))
        self._check_max_shape()
        if type(self.virtual_edges) is not int or not 1 <= self.virtual_edges <= 250:
            raise ValueError(
                f"virtual_edges is {describe_value(self.virtual_edges)}, expected an int from 1"
                " (none) to 250"
            )
        check_choice("layer_norm", self.layer_norm, (False, True))
        check_choice("normalize_parameters", self.normalize_parameters, (False, True))
        for name, part in (("message_passing", MessagePassingConfig), ("decoder", DecoderConfig)):
            variant = build_variant(part, getattr(self, name), name)
            object.__setattr__(self, name, variant)
            check = getattr(part.variants[variant.name], "check_config", None)
            if check is not None:
                check(self)

    def _check_max_shape(self) -> None:
        sizes = self.max_shape
        are_positive = all(type(size) is int and size >= 1 for size in sizes)
        if len(sizes) != 4 or not are_positive or sizes[2] != sizes[3]:
            raise ValueError(
                f"max_shape is {describe_value(sizes)}, expected four positive ints (out, in,"
                " height, width) with height equal to width"
            )
        for index, size in enumerate(sizes):
            most = limits.TILE_SIZE if index < 2 else limits.KERNEL_SIZE
            check_positive_int(f"max_shape[{index}]", size, most)
        check_positive_int("max_shape in elements", math.prod(sizes), limits.COUNT)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        fields: dict[str, Any] = to_dictionary(self)
        return fields


def ghn1(**overrides: Any) -> GHNConfig:
    """Configure GHN-1 (Zhang et al., ICLR 2019): no virtual edges, no normalisation."""
    fields = {"virtual_edges": 1, "layer_norm": False, "normalize_parameters": False}
    return GHNConfig(**{**fields, **overrides})


def ghn2(**overrides: Any) -> GHNConfig:
    """Configure GHN-2 (Knyazev et al., NeurIPS 2021): virtual edges, both normalisations."""
    return GHNConfig(**overrides)


def mlp(**overrides: Any) -> GHNConfig:
    """Configure the MLP baseline (Knyazev et al., NeurIPS 2021): GHN-2 without the edges."""
    return GHNConfig(**{"message_passing": "mlp", **overrides})
