"""The decoder of GHN-1 and GHN-2: kernels from a cropped feature map (docs/method.md).

Layouts are Flax's, so the last layer is parameterised (features, I, O).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.hypernetworks.decoders.decoder import Decoder
from ghn_jax.hypernetworks.decoders.registry import register_decoder
from ghn_jax.hypernetworks.layers import add_bias, linear, plain_product, product, uniform_by_fan_in
from ghn_jax.hypernetworks.official_tensors import TensorLayout, same
from ghn_jax.hypernetworks.tiling import TileKey


@register_decoder("conv")
class ConvDecoder(Decoder):
    """Decodes kernels from a feature map as large as the largest kernel.

    linear D -> 4 D on S x S pixels, relu, cropped to the kernel; 1x1 convolutions 4 D -> 8 D, relu,
    8 D -> (I, O). A kernel larger than S repeats the S x S tile.
    """

    official_name = "conv"

    def setup(self) -> None:
        self.multiply = product if self.reverse_only else plain_product
        size, (features_out, features_in, spatial, _) = self.hidden_size, self.max_shape
        first, second = uniform_by_fan_in(size), uniform_by_fan_in(4 * size)
        third = uniform_by_fan_in(8 * size)
        self.kernel_1 = self.param("kernel_1", first, (size, spatial, spatial, 4 * size))
        self.bias_1 = self.param("bias_1", first, (spatial, spatial, 4 * size))
        self.kernel_2 = self.param("kernel_2", second, (4 * size, 8 * size))
        self.bias_2 = self.param("bias_2", second, (8 * size,))
        self.kernel_3 = self.param("kernel_3", third, (8 * size, features_in, features_out))
        self.bias_3 = self.param("bias_3", third, (features_in, features_out))
        self.classifier = linear(self.num_classes, features_out)

    def _pixels(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, 8 D), height and width at most S."""
        kernel, bias = self.kernel_1[:, :height, :width], self.bias_1[:height, :width]
        x = self.multiply(x, kernel)
        x = jax.nn.relu(add_bias(x, bias))
        x = self.multiply(x, self.kernel_2)
        return jax.nn.relu(add_bias(x, self.bias_2))

    def _decode(
        self, x: jax.Array, height: int, width: int, kernel: jax.Array, bias: jax.Array
    ) -> jax.Array:
        """Apply the part of the last layer that the tile needs; repeat the result beyond S."""
        limit = self.max_shape[2]
        x = self._pixels(x, min(height, limit), min(width, limit))
        tile = self.multiply(x, kernel)
        tile = add_bias(tile, bias)
        if max(height, width) > limit:
            repeats = (1, -(-height // limit), -(-width // limit)) + (1,) * (tile.ndim - 3)
            tile = jnp.tile(tile, repeats)[:, :height, :width]
        return tile

    def kernel(
        self, x: jax.Array, height: int, width: int, num_in: int | None, num_out: int | None
    ) -> jax.Array:
        """(G, D) -> (G, height, width, I, O), or only the first `num_in` of I, `num_out` of O."""
        kernel, bias = self.kernel_3[:, :num_in, :num_out], self.bias_3[:num_in, :num_out]
        return self._decode(x, height, width, kernel, bias)

    def depthwise(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, 1, O): a kernel's first input channel."""
        return self._decode(x, height, width, self.kernel_3[:, :1], self.bias_3[:1])

    def position(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, I): a kernel's first output channel."""
        return self._decode(x, height, width, self.kernel_3[:, :, 0], self.bias_3[:, 0])

    def classifier_kernel(self, x: jax.Array) -> jax.Array:
        """(G, D) -> (G, I, K): a 1x1 kernel, relu, then a linear layer over its output channels."""
        return self.classifier(jax.nn.relu(self.kernel(x, 1, 1, None, None)[:, 0, 0]))

    @nn.nowrap
    def num_products(self, key: TileKey) -> int:
        """Count the multiplications that a tile takes in the two 1x1 convolutions."""
        num_pixels, num_elements = self.decoded_sizes(key)
        return num_pixels * 8 * self.hidden_size * (4 * self.hidden_size + num_elements)

    @nn.nowrap
    def official_tensors(self) -> dict[str, TensorLayout]:
        """See `hypernetworks.official_tensors`."""
        size, (num_out, num_in, spatial, _) = self.hidden_size, self.max_shape
        first, second, num_classes = 4 * size, 8 * size, self.num_classes
        pixels, tile = first * spatial**2, num_out * num_in
        classifier = "decoder.class_layer_predictor.1"
        return {
            # The channels are the slowest axis of the first layer's outputs: (4D, S, S).
            "kernel_1": TensorLayout(
                "decoder.fc.0.weight", (pixels, size), (first, spatial, spatial, size), (3, 1, 2, 0)
            ),
            "bias_1": TensorLayout(
                "decoder.fc.0.bias", (pixels,), (first, spatial, spatial), (1, 2, 0)
            ),
            "kernel_2": TensorLayout(
                "decoder.conv.0.weight", (second, first, 1, 1), (second, first), (1, 0)
            ),
            "bias_2": same("decoder.conv.0.bias", second),
            "kernel_3": TensorLayout(
                "decoder.conv.2.weight", (tile, second, 1, 1), (num_out, num_in, second), (2, 1, 0)
            ),
            "bias_3": TensorLayout("decoder.conv.2.bias", (tile,), (num_out, num_in), (1, 0)),
            "classifier/kernel": TensorLayout(
                f"{classifier}.weight", (num_classes, num_out, 1, 1), (num_classes, num_out), (1, 0)
            ),
            "classifier/bias": same(f"{classifier}.bias", num_classes),
        }
