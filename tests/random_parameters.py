"""Parameters of Flax modules for tests, drawn by numpy: nothing to compile."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def draw_parameters(init: Callable, *args: Any, seed: int = 0, scale: float = 1.0, **kwargs: Any):
    """Draw what `init(key, *args, **kwargs)` would return, arrays of variance 1 / fan_in."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), *args, **kwargs))
    rng = np.random.default_rng(seed)

    def draw(like):
        fan_in = like.shape[0] if len(like.shape) > 1 else 4
        return (scale / math.sqrt(fan_in) * rng.standard_normal(like.shape)).astype(like.dtype)

    return jax.tree.map(draw, shapes)
