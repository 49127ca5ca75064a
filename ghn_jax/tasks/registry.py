"""Tasks by name: `register_task("mine")(Mine)`, then `task.name = "mine"` in a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from ghn_jax.configuration.variants import VariantConfig, Variants

_T = TypeVar("_T", bound=type)


@dataclasses.dataclass(frozen=True)
class TaskConfig(VariantConfig):
    """The name and the fields of a task; each task has its own subclass, `Task.Config`."""


TASKS = Variants(
    "the task",
    TaskConfig,
    "register_task",
    provided=("input_shape", "num_outputs", "label_smoothing"),
)


def register_task(name: str) -> Callable[[_T], _T]:
    """Register a task under a name that configs can use.

    The decorated class must be a frozen dataclass whose fields all have defaults. Its fields become
    fields beside `task.name`, except `input_shape`, `num_outputs` and `label_smoothing`, which are
    filled in from the rest of the config.

    Args:
        name: The value of `task.name` that selects the task.

    Returns:
        The class decorator.

    Raises:
        ValueError: If another class has the name, or a field of the class has no default.
    """
    return TASKS.register(name)
