"""Message passing by name: `register_message_passing("mine")(Mine)` makes it available to configs.

A message passing module maps node states (B, N, D) and a `GraphBatch` to node states (B, N, D). It
may also have:
    needs_edges: True if it reads `GraphBatch.edges`.
    for_programs(nodes_at_once): returns the variant that shared programs run; see `Hypernetwork`.
    parameter_scope: the name of its subtree in the hypernetwork's parameters.
    official_name, official_tensors(config): its name and its tensors in official checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from ghn_jax.configuration.variants import VariantConfig, Variants

_M = TypeVar("_M", bound=type)


@dataclasses.dataclass(frozen=True)
class MessagePassingConfig(VariantConfig):
    """Chooses a kind of message passing; each variant has its own subclass, `Module.Config`."""


MESSAGE_PASSING = Variants(
    "message passing",
    MessagePassingConfig,
    "register_message_passing",
    provided=("virtual_edges", "nodes_at_once", "reverse_only"),
)


def register_message_passing(name: str) -> Callable[[_M], _M]:
    """Register a message passing module under a name that configs can use.

    Args:
        name: The value of `ghn.message_passing.name` that selects it. The module's fields, all of
            which need defaults, become config fields next to `name`; `virtual_edges` is filled in
            from the hypernetwork's config.

    Returns:
        A decorator for the module's class.

    Raises:
        ValueError: If another class has the name, or a field of the class has no default.
    """
    return MESSAGE_PASSING.register(name)


def parameter_scope(module: Any) -> str:
    """Return the name of a module's subtree in the hypernetwork's parameters."""
    scope: str = getattr(module, "parameter_scope", "message_passing")
    return scope
