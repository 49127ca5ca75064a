"""Random initialisation of target networks: the baseline for predicted parameters."""

import math

import numpy as np

from ghn_jax.targets.plan import Plan


def initialize_randomly(plan: Plan, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw He-normal kernels (He et al., ICCV 2015), unit scales, zero biases.

    Args:
        plan: The lowered architecture.
        rng: The random number generator.

    Returns:
        float32 arrays with the order and shapes of `plan.tensors`. Positional encodings are drawn
        from N(0, 1).
    """
    params = []
    for tensor in plan.tensors:
        if tensor.role == "scale":
            value = np.ones(tensor.shape, np.float32)
        elif tensor.role in ("bias", "classifier_bias"):
            value = np.zeros(tensor.shape, np.float32)
        else:
            value = rng.standard_normal(tensor.shape, dtype=np.float32)
            if tensor.role != "position":
                value *= math.sqrt(2.0 / math.prod(tensor.shape[:-1]))
        params.append(value)
    return params
