"""Linear layers and MLPs, initialised as in the published hypernetworks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def uniform_by_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Initialise from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for both parameters."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def plain_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Contract the last axis of x with a kernel's first: (..., A), (A, ...) -> (..., ...)."""
    return jnp.tensordot(x, kernel, axes=1)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Compute `plain_product`, with a gradient that needs no transposition.

    JAX's own gradient computes the kernel's gradient transposed and then transposes it back. For a
    kernel of a million elements that takes a CPU longer than the product itself.
    """
    return plain_product(x, kernel)


def _product_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel), (x, kernel)


def _product_bwd(
    residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    rows, columns = x.reshape(-1, x.shape[-1]), kernel.reshape(kernel.shape[0], -1)
    dy = dy.reshape(rows.shape[0], columns.shape[1])
    dx = jnp.matmul(dy, columns.T)
    return dx.reshape(x.shape), jnp.matmul(rows.T, dy).reshape(kernel.shape)


product.defvjp(_product_fwd, _product_bwd)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Add a bias to the last axes of x: (..., A, B) + (A, B)."""
    return x + bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def linear(features: int, fan_in: int, name: str | None = None) -> nn.Dense:
    """Create a dense layer with PyTorch's default initialisation."""
    init = uniform_by_fan_in(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)


class MLP(nn.Module):
    """Two linear layers with a relu between them and, by default, another at the end.

    Attributes:
        hidden_size: Width of the first layer's output.
        features: Width of the second layer's output.
        activate_output: Whether a relu follows the second layer.
    """

    hidden_size: int
    features: int
    activate_output: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) -> (..., features)."""
        x = jax.nn.relu(linear(self.hidden_size, x.shape[-1], "layer_1")(x))
        x = linear(self.features, self.hidden_size, "layer_2")(x)
        return jax.nn.relu(x) if self.activate_output else x
