"""GHN-2's other decoder: an MLP whose output is cropped to kernels (docs/method.md, 'Decoders')."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.hypernetworks.decoders.decoder import Decoder
from ghn_jax.hypernetworks.decoders.registry import register_decoder
from ghn_jax.hypernetworks.layers import add_bias, linear, plain_product, product, uniform_by_fan_in
from ghn_jax.hypernetworks.official_tensors import TensorLayout, linear_tensors
from ghn_jax.hypernetworks.tiling import TileKey


@register_decoder("mlp")
class MLPDecoder(Decoder):
    """Decodes kernels with an MLP D -> 2 D -> (S, S, I, O) whose output is cropped.

    The classifier is decoded from the hidden layer. The tile has as many output channels as input
    channels: O = I.
    """

    official_name = "mlp"

    def setup(self) -> None:
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
        """(G, D) -> (G, height, width, I, O), or only the first `num_in` of I, `num_out` of O."""
        limit = self.max_shape[2]
        window = tuple(map(slice, (min(height, limit), min(width, limit), num_in, num_out)))
        x = jax.nn.relu(self.hidden(x))
        tile = self.multiply(x, self.kernel_2[(slice(None), *window)])
        tile = add_bias(tile, self.bias_2[window])
        repeats = (1, -(-height // limit), -(-width // limit), 1, 1)
        return jnp.tile(tile, repeats)[:, :height, :width]

    def classifier_kernel(self, x: jax.Array) -> jax.Array:
        """(G, D) -> (G, I, K)."""
        x = self.classifier(jax.nn.relu(self.hidden(x)))
        return x.reshape(x.shape[0], self.num_classes, self.max_shape[1]).swapaxes(1, 2)

    @nn.nowrap
    def num_products(self, key: TileKey) -> int:
        """Count the multiplications that a tile takes in the second layer."""
        num_pixels, num_elements = self.decoded_sizes(key)
        return 2 * self.hidden_size * num_pixels * num_elements

    @staticmethod
    def check_config(config: Any) -> None:
        """Raise ValueError if this decoder cannot work with a hypernetwork's config."""
        if config.max_shape[0] != config.max_shape[1]:
            raise ValueError(
                f"max_shape is {config.max_shape!r} with decoder 'mlp', expected as many output as"
                " input channels"
            )

    @nn.nowrap
    def official_tensors(self) -> dict[str, TensorLayout]:
        """See `hypernetworks.official_tensors`."""
        hidden_size, tile = 2 * self.hidden_size, self.max_shape
        num_outputs = math.prod(tile)
        classifier = "decoder.class_layer_predictor.1"
        return {
            **linear_tensors("hidden/", "decoder.mlp.fc.0", self.hidden_size, hidden_size),
            "kernel_2": TensorLayout(
                "decoder.mlp.fc.2.weight",
                (num_outputs, hidden_size),
                (*tile, hidden_size),
                (4, 2, 3, 1, 0),
            ),
            "bias_2": TensorLayout("decoder.mlp.fc.2.bias", (num_outputs,), tile, (2, 3, 1, 0)),
            **linear_tensors("classifier/", classifier, hidden_size, self.num_classes * tile[0]),
        }
