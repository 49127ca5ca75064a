"""The update rule of the GHN's parameters, from optax's parts.

An `OptimizerConfig` and the number of steps give an optax gradient transformation: clip the global
norm, add L2 (adam, sgd), apply the rule, add decoupled weight decay (adamw), scale by the learning
rate. This is the order of PyTorch's optimizers after `clip_grad_norm_`, with which the published
GHNs were trained.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from ghn_jax.training.config import OptimizerConfig
from ghn_jax.training.update_rules import SCHEDULES, UPDATE_RULES


def create_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Create the learning rate as a function of the step.

    Args:
        config: what kind of schedule.
        num_steps: number of steps of the run; the cosine and linear schedules reach 0 there.

    Returns:
        A function from the number of updates made so far, a scalar int, to the rate of the next.
    """
    decayed = SCHEDULES[config.schedule](config, num_steps)

    def rate(num_updates: jax.typing.ArrayLike) -> jax.Array:
        # A float, exact up to 16 million: optax's schedules mix it with floats.
        step = jnp.asarray(num_updates, jnp.float32)
        # The first update already moves: its rate is 1 / warmup_steps of the full one.
        share = jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1.0)
        return share * decayed(step)

    return rate


def create_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Create the transformation from gradients to updates.

    Args:
        config: the rule and its hyperparameters.
        num_steps: number of steps of the run, for the schedule.

    Returns:
        An optax transformation; its `update` needs the parameters where weight decay is not 0.

    References:
        Kingma and Ba, Adam, ICLR 2015; Loshchilov and Hutter, AdamW, ICLR 2019.
    """
    stages: list[optax.GradientTransformation] = []
    if config.clip_norm is not None:
        stages.append(optax.clip_by_global_norm(config.clip_norm))
    stages.extend(UPDATE_RULES[config.name](config))
    stages.append(optax.scale_by_learning_rate(create_schedule(config, num_steps)))
    return _allow_promotion(optax.chain(*stages))


def _allow_promotion(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the transformation, made to work where JAX's dtype promotion is strict."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        # Optax raises floats to the power of an int32 count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)
