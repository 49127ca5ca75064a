"""Layer norm for hypernetworks and for the networks they predict."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class LayerNorm(nn.Module):
    """Layer norm over the last axis; unlike Flax's, it does not mix float32 into float64."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        dtype = x.dtype
        x = x.astype(jnp.float32) if jnp.finfo(dtype).bits < 32 else x
        scale, bias = scale.astype(x.dtype), bias.astype(x.dtype)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        var = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        normal = x * jax.lax.rsqrt(var + self.epsilon)
        y = normal * _row(scale, x.ndim) + _row(bias, x.ndim)
        return y.astype(dtype)


def _row(vector: jax.Array, ndim: int) -> jax.Array:
    return vector.reshape((1,) * (ndim - 1) + (-1,))
