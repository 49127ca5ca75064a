"""Normalisation of predicted parameters (GHN-2, section 3; docs/method.md).

Kernels are multiplied by sqrt(beta / fan_in), which preserves the scale of activations; norm scales
become 2 sigmoid(p / 2), in [0, 2], and biases tanh(p / 5), in [-1, 1].
"""

import math

import jax
import jax.numpy as jnp

from ghn_jax.hypernetworks.config import GHNConfig


def normalize_scale(p: jax.Array) -> jax.Array:
    """Normalise norm scales: 2 sigmoid(p / 2), elementwise."""
    return 2 * jax.nn.sigmoid(0.5 * p)


def normalize_bias(p: jax.Array) -> jax.Array:
    """Normalise biases: tanh(p / 5), elementwise."""
    return jnp.tanh(0.2 * p)


def normalize_vectors(tiles: jax.Array, kind: str) -> jax.Array:
    """Normalise tiles of 1-D parameters: (G, 2, C), rows scale and bias, or (G, K) biases."""
    if kind == "classifier_bias":
        return normalize_bias(tiles)
    return jnp.stack([normalize_scale(tiles[:, 0]), normalize_bias(tiles[:, 1])], axis=1)


def kernel_factor(shape: tuple[int, ...], role: str) -> float:
    """Compute the factor that scales a tensor with two or more axes.

    Args:
        shape: The tensor's shape in Flax layout, output channels last.
        role: The tensor's role.

    Returns:
        1 for positional encodings; 1 / sqrt(width) for embeddings, of which a lookup takes one row,
        so that the number of rows does not matter, as in `flax.linen.Embed`; otherwise
        sqrt(beta / fan_in), where beta is 1 for kernels that no relu follows (depthwise, 1x7) and 2
        for the others.
    """
    if role == "position":
        return 1.0
    if role == "embedding":
        return 1 / math.sqrt(shape[-1])
    no_relu = len(shape) == 4 and (shape[2] == 1 or shape[0] < shape[1])
    return math.sqrt((1.0 if no_relu else 2.0) / math.prod(shape[:-1]))


def parameter_factor(config: GHNConfig, shape: tuple[int, ...], role: str) -> float:
    """Compute a predicted tensor's factor: from its fan-in if the config normalises, else 1."""
    is_normalized = config.normalize_parameters and len(shape) > 1
    return kernel_factor(shape, role) if is_normalized else 1.0
