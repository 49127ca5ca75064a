"""The choices that make a hypernetwork a GHN-1, a GHN-2 or an MLP (spec section 3)."""

import dataclasses
import difflib
from typing import Any

_MESSAGE_PASSING = ("gated_gnn", "mlp")
_DECODERS = ("conv", "mlp")


@dataclasses.dataclass(frozen=True)
class GHNConfig:
    """Configuration of a hypernetwork; it travels with the parameters in a checkpoint.

    Attributes:
        num_classes: Classes of the target networks.
        hidden_size: Width D of node embeddings, a multiple of 4.
        max_shape: Largest tile (out, in, height, width); larger parameters repeat it.
        message_passing: "gated_gnn", or "mlp", which ignores edges.
        virtual_edges: Longest distance with a virtual edge, 2..250; 1 means none.
        layer_norm: Whether node embeddings are layer-normalised before decoding.
        normalize_parameters: Whether predicted parameters are scaled by their fan-in.
        decoder: "conv" or "mlp".
    """

    num_classes: int = 10
    hidden_size: int = 32
    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)
    message_passing: str = "gated_gnn"
    virtual_edges: int = 50
    layer_norm: bool = True
    normalize_parameters: bool = True
    decoder: str = "conv"

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_shape", tuple(self.max_shape))
        _check(
            isinstance(self.num_classes, int) and self.num_classes >= 1,
            f"num_classes is {self.num_classes!r}, expected a positive integer",
        )
        _check(
            isinstance(self.hidden_size, int) and self.hidden_size >= 4 and self.hidden_size % 4 == 0,
            f"hidden_size is {self.hidden_size!r}, expected a positive multiple of 4",
        )
        _check(
            len(self.max_shape) == 4
            and all(isinstance(size, int) and size >= 1 for size in self.max_shape)
            and self.max_shape[2] == self.max_shape[3],
            f"max_shape is {self.max_shape!r}, expected four positive integers (out, in, height, "
            "width) with height equal to width",
        )
        _check(
            isinstance(self.virtual_edges, int) and 1 <= self.virtual_edges <= 250,
            f"virtual_edges is {self.virtual_edges!r}, expected 1 (none) to 250",
        )
        for name in ("layer_norm", "normalize_parameters"):
            value = getattr(self, name)
            _check(isinstance(value, bool), f"{name} is {value!r}, expected True or False")
        _check_choice("message_passing", self.message_passing, _MESSAGE_PASSING)
        _check_choice("decoder", self.decoder, _DECODERS)
        _check(
            self.decoder == "conv" or self.max_shape[0] == self.max_shape[1],
            f"max_shape is {self.max_shape!r} with decoder 'mlp', expected as many output as input "
            "channels",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "max_shape": list(self.max_shape)}


def ghn1(**overrides: Any) -> GHNConfig:
    """GHN-1 (Zhang et al., ICLR 2019): no virtual edges, no normalisation."""
    fields = {"virtual_edges": 1, "layer_norm": False, "normalize_parameters": False}
    return GHNConfig(**{**fields, **overrides})


def ghn2(**overrides: Any) -> GHNConfig:
    """GHN-2 (Knyazev et al., NeurIPS 2021): virtual edges, layer norm, parameter normalisation."""
    return GHNConfig(**overrides)


def mlp(**overrides: Any) -> GHNConfig:
    """The MLP baseline (Knyazev et al., NeurIPS 2021): as GHN-2, but blind to edges."""
    return GHNConfig(**{"message_passing": "mlp", **overrides})


def _check(is_valid: bool, message: str) -> None:
    if not is_valid:
        raise ValueError(message)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} is {value!r}, expected one of {choices}{hint}")
