"""Random initialisation of target networks: the baseline for predicted parameters."""

import math
from collections.abc import Sequence

import numpy as np

from ghn_jax.graphs.schema import ParameterTensor
from ghn_jax.targets.plan import Plan


def initialize_randomly(plan: Plan, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw the parameters of an architecture, see `draw_tensors`."""
    return draw_tensors(plan.tensors, rng)


def draw_tensors(tensors: Sequence[ParameterTensor], rng: np.random.Generator) -> list[np.ndarray]:
    """Draw He-normal kernels (He et al., ICCV 2015), unit scales, zero biases.

    Args:
        tensors: The parameter tensors of a network.
        rng: The random number generator.

    Returns:
        float32 arrays with the order and shapes of `tensors`. Positional encodings are drawn from
        N(0, 1), embeddings with a standard deviation of 1 / sqrt(width).
    """
    params = []
    for tensor in tensors:
        if tensor.role == "scale":
            value = np.ones(tensor.shape, np.float32)
        elif tensor.role in ("bias", "classifier_bias"):
            value = np.zeros(tensor.shape, np.float32)
        else:
            value = rng.standard_normal(tensor.shape, dtype=np.float32)
            if tensor.role != "position":
                value *= he_std(tensor)
        params.append(value)
    return params


def he_std(tensor: ParameterTensor) -> float:
    """Return He's standard deviation of a kernel, sqrt(2 / fan_in); 1 / sqrt(width) of a table."""
    if tensor.role == "embedding":  # a lookup takes one row, however many there are
        return 1 / math.sqrt(tensor.shape[-1])
    return math.sqrt(2.0 / math.prod(tensor.shape[:-1]))
