"""The decoder of norm scales and biases, an MLP; it accompanies every kernel decoder."""

import flax.linen as nn
import jax

from ghn_jax.hypernetworks.decoders.decoder import TileModule
from ghn_jax.hypernetworks.layers import MLP, linear
from ghn_jax.hypernetworks.tiling import VECTOR_KINDS, TileKey


class VectorDecoder(TileModule):
    """Decodes 1-D parameters: MLP D -> 2 D -> (2, max(O, I)), row 0 norm scales, row 1 biases.

    Attributes:
        hidden_size: Width D of the node embeddings.
        num_channels: Length of a row, max(O, I).
        num_classes: Number of classes K.
    """

    hidden_size: int
    num_channels: int
    num_classes: int

    kinds = VECTOR_KINDS

    def setup(self) -> None:
        self.mlp = MLP(2 * self.hidden_size, 2 * self.num_channels, activate_output=False)
        self.classifier = linear(self.num_classes, self.num_channels)

    def vector(self, x: jax.Array) -> jax.Array:
        """(G, D) -> (G, 2, max(O, I))."""
        return self.mlp(x).reshape(x.shape[0], 2, self.num_channels)

    def classifier_bias(self, x: jax.Array) -> jax.Array:
        """(G, D) -> (G, K): relu, then a linear layer, on row 1."""
        return self.classifier(jax.nn.relu(self.vector(x)[:, 1]))

    def __call__(self, x: jax.Array, key: TileKey) -> jax.Array:
        """(G, D) -> (G, ...) tiles, laid out as `TileKey` says."""
        return self.classifier_bias(x) if key.kind == "classifier_bias" else self.vector(x)

    @nn.nowrap
    def num_products(self, key: TileKey) -> int:
        """See `DecoderProtocol`. Counts the second layer."""
        del key
        return 4 * self.hidden_size * self.num_channels
