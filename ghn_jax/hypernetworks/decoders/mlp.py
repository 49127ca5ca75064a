"""Kernels from an MLP, cropped: GHN-2's other decoder (docs/method.md, 'Decoders')."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.hypernetworks.layers import add_bias, linear, plain_product, product, uniform_by_fan_in


class MLPDecoder(nn.Module):
    """Kernels from an MLP D -> 2 D -> (S, S, I, O), cropped; the classifier from its hidden layer.

    Attributes:
        hidden_size: D.
        max_shape: (O, I, S, S) with O = I.
        num_classes: K.
        reverse_only: Whether products have a gradient written by hand, see `Hypernetwork`.
    """

    hidden_size: int
    max_shape: tuple[int, int, int, int]
    num_classes: int
    reverse_only: bool = False

    def setup(self):
        self.multiply = product if self.reverse_only else plain_product
        size, (features_out, features_in, spatial, _) = self.hidden_size, self.max_shape
        init = uniform_by_fan_in(2 * size)
        shape = (spatial, spatial, features_in, features_out)
        self.hidden = linear(2 * size, size)
        self.kernel_2 = self.param("kernel_2", init, (2 * size, *shape))
        self.bias_2 = self.param("bias_2", init, shape)
        self.classifier = linear(self.num_classes * features_in, 2 * size)

    def kernel(
        self, x: jax.Array, height: int, width: int, num_in: int | None, num_out: int | None
    ) -> jax.Array:
        """(G, D) -> (G, height, width, I, O), of I and O the first `num_in` and `num_out`."""
        limit = self.max_shape[2]
        window = tuple(map(slice, (min(height, limit), min(width, limit), num_in, num_out)))
        x = jax.nn.relu(self.hidden(x))
        tile = self.multiply(x, self.kernel_2[(slice(None), *window)])
        tile = add_bias(tile, self.bias_2[window])
        repeats = (1, -(-height // limit), -(-width // limit), 1, 1)
        return jnp.tile(tile, repeats)[:, :height, :width]

    def depthwise(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, 1, O)."""
        return self.kernel(x, height, width, 1, None)

    def position(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, I)."""
        return self.kernel(x, height, width, None, 1)[..., 0]

    def classifier_kernel(self, x: jax.Array) -> jax.Array:
        """(G, D) -> (G, I, K)."""
        x = self.classifier(jax.nn.relu(self.hidden(x)))
        return x.reshape(x.shape[0], self.num_classes, self.max_shape[1]).swapaxes(1, 2)
