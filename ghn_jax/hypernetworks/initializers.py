"""Initial values of a GHN's parameters: those of PyTorch's layers, as published GHNs were trained
from.

`nn.Linear` draws weight and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), `nn.GRUCell` from the
same with the hidden size in place of the fan-in.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def uniform_by_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Return an initializer that draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
