"""Tasks: the inputs and outputs of target networks, their loss and their metrics."""

# Importing a task registers it.
from ghn_jax.tasks.classification import CLASSIFICATION, Classification
from ghn_jax.tasks.parameter_terms import ParameterTerm, norm_penalty, on_each_tensor
from ghn_jax.tasks.registry import TASKS, TaskConfig, register_task
from ghn_jax.tasks.task import Batch, Task

__all__ = [
    "CLASSIFICATION",
    "TASKS",
    "Batch",
    "Classification",
    "ParameterTerm",
    "Task",
    "TaskConfig",
    "norm_penalty",
    "on_each_tensor",
    "register_task",
]
