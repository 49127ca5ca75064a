"""Message passing by name: `register_message_passing("mine")(Mine)`, and what a config may name.

A module of message passing takes node states (B, N, D) and a `GraphBatch` to node states (B, N, D).
It may have these, too:
    needs_edges: True if it reads `GraphBatch.edges`.
    for_programs(nodes_at_once): the same module as shared programs run it, see `Hypernetwork`.
    parameter_scope: the name of its part in the tree of the hypernetwork's parameters.
    official_name, official_tensors(config): what official checkpoints call it and its tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from ghn_jax.configuration.variants import VariantConfig, Variants

_M = TypeVar("_M", bound=type)


@dataclasses.dataclass(frozen=True)
class MessagePassingConfig(VariantConfig):
    """Which message passing; that of each variant is `Module.Config`."""


MESSAGE_PASSING = Variants(
    "message passing",
    MessagePassingConfig,
    "register_message_passing",
    provided=("virtual_edges", "nodes_at_once", "reverse_only"),
)


def register_message_passing(name: str) -> Callable[[_M], _M]:
    """Make a module of message passing known to configs by a name; a decorator of its class.

    Args:
        name: For `ghn.message_passing.name`. The fields of the module, all with defaults, become
            fields beside it; `virtual_edges` is filled in from the hypernetwork's config.

    Returns:
        The decorator.

    Raises:
        ValueError: If another class has the name, or a field of the class has no default.
    """
    return MESSAGE_PASSING.register(name)


def parameter_scope(module: Any) -> str:
    """The name of a module's part in the tree of the hypernetwork's parameters."""
    scope: str = getattr(module, "parameter_scope", "message_passing")
    return scope
