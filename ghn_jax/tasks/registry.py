"""Tasks by name: `register_task("mine")(Mine)`, then `task.name = "mine"` in a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from ghn_jax.configuration.variants import VariantConfig, Variants

_T = TypeVar("_T", bound=type)


@dataclasses.dataclass(frozen=True)
class TaskConfig(VariantConfig):
    """Which task; that of each is `Task.Config`."""


TASKS = Variants(
    "the task",
    TaskConfig,
    "register_task",
    provided=("input_shape", "num_outputs", "label_smoothing"),
)


def register_task(name: str) -> Callable[[_T], _T]:
    """Make a task known to configs by a name; a decorator of its class, a frozen dataclass.

    Args:
        name: For `task.name`. Fields of the class, all with defaults, become fields beside it; but
            `input_shape`, `num_outputs` and `label_smoothing` are filled in from the rest of the
            config.

    Returns:
        The decorator.

    Raises:
        ValueError: If another class has the name, or a field of the class has no default.
    """
    return TASKS.register(name)
