"""Update rules and schedules by name; add an entry to add one.

An entry maps an `OptimizerConfig` to the parts from which `create_optimizer` builds an optax
transformation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

Transformations = tuple[optax.GradientTransformation, ...]


def _weight_decay(config: Any) -> Transformations:
    return (optax.add_decayed_weights(config.weight_decay),) if config.weight_decay else ()


def _adam(config: Any) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.betas[0], b2=config.betas[1])


UPDATE_RULES: dict[str, Callable[[Any], Transformations]] = {
    # L2 is added to the gradient; decoupled weight decay comes after the rule.
    "adam": lambda config: (*_weight_decay(config), _adam(config)),
    "adamw": lambda config: (_adam(config), *_weight_decay(config)),
    "sgd": lambda config: (*_weight_decay(config), optax.trace(decay=config.momentum)),
}
"""From an `OptimizerConfig` to the transformations before scaling by the learning rate."""


def _step(config: Any, num_steps: int) -> optax.Schedule:
    del num_steps
    factors = dict.fromkeys(config.milestones, config.decay_factor)
    return optax.piecewise_constant_schedule(config.learning_rate, factors)


def _cosine(config: Any, num_steps: int) -> optax.Schedule:
    decayed = optax.cosine_decay_schedule(config.learning_rate, num_steps - config.warmup_steps)
    return lambda step: decayed(jnp.maximum(step - config.warmup_steps, 0.0))


def _linear(config: Any, num_steps: int) -> optax.Schedule:
    decayed = optax.linear_schedule(config.learning_rate, 0.0, num_steps - config.warmup_steps)
    return lambda step: decayed(jnp.maximum(step - config.warmup_steps, 0.0))


SCHEDULES: dict[str, Callable[[Any, int], optax.Schedule]] = {
    "constant": lambda config, num_steps: optax.constant_schedule(config.learning_rate),
    "step": _step,
    "cosine": _cosine,
    "linear": _linear,
}
"""From an `OptimizerConfig` and the number of steps to a function from step to learning rate."""
