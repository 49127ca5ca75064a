"""The hypernetwork: graphs -> node embeddings -> tiles, composed as its configuration says."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.graphs.batching import GraphBatch
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.hypernetworks.decoders import KERNEL_DECODERS, VectorDecoder
from ghn_jax.hypernetworks.embedding import NodeEmbedding
from ghn_jax.hypernetworks.layers import MLP
from ghn_jax.hypernetworks.message_passing.gated_gnn import GatedGNN
from ghn_jax.hypernetworks.normalization import normalize_bias, normalize_scale
from ghn_jax.hypernetworks.tiling import KINDS, TileKey
from ghn_jax.layer_norm import LayerNorm
from ghn_jax.programs.cache import compile_lowered


class Hypernetwork(nn.Module):
    """A GHN-1, GHN-2 or MLP hypernetwork.

    Attributes:
        config: Which modules it is composed of.
        nodes_at_once: How many consecutive nodes message passing visits together; in the batches it
            gets, no edge joins two of them.
    """

    config: GHNConfig
    nodes_at_once: int = 1

    def setup(self):
        config = self.config
        size, max_shape = config.hidden_size, config.max_shape
        self.embedding = NodeEmbedding(size, config.num_classes, max_shape[2])
        if config.message_passing == "gated_gnn":
            self.gnn = GatedGNN(config.virtual_edges, self.nodes_at_once)
        else:
            self.mlp = MLP(size, size)
        if config.layer_norm:
            self.norm = LayerNorm()
        self.kernels = KERNEL_DECODERS[config.decoder](size, max_shape, config.num_classes)
        self.vectors = VectorDecoder(size, max(max_shape[:2]), config.num_classes)

    def embed_nodes(self, batch: GraphBatch) -> jax.Array:
        """Embed the nodes of B graphs.

        Args:
            batch: B graphs padded to N nodes.

        Returns:
            (B, N, D), what the decoders read.
        """
        x = self.embedding(batch.primitive, batch.shape_index)
        if self.config.message_passing == "gated_gnn":
            places = 1 + jnp.arange(batch.node_mask.shape[1], dtype=jnp.int32)
            num_visited = jnp.max(jnp.where(batch.node_mask, places, 0))
            x = self.gnn(x, batch.distance, num_visited)
        else:
            x = self.mlp(x)
        return self.norm(x) if self.config.layer_norm else x

    def decode(self, embeddings: jax.Array, requests: Mapping[TileKey, jax.Array]) -> dict:
        """Decode the tiles of chosen nodes.

        Args:
            embeddings: (M, D), nodes of all graphs.
            requests: For each kind of tile, (G,) int32 indices into `embeddings`.

        Returns:
            For each key, the (G, ...) tiles that `TileKey` describes; vectors and classifier biases
            are normalised where the configuration says so.

        Raises:
            ValueError: If a key is of an unknown kind.
        """
        return {key: self._decode_kind(embeddings[index], key) for key, index in requests.items()}

    def __call__(self, batch: GraphBatch, requests: Mapping[TileKey, jax.Array]) -> dict:
        """Embed and decode; indices of `requests` count the B * N nodes of the batch."""
        embeddings = self.embed_nodes(batch)
        return self.decode(embeddings.reshape(-1, embeddings.shape[-1]), requests)

    def _decode_kind(self, x: jax.Array, key: TileKey) -> jax.Array:
        if key.kind not in KINDS:
            raise ValueError(f"kind of {key} is {key.kind!r}, expected one of {', '.join(KINDS)}")
        if key.kind == "kernel":
            bounds = (key.in_channels or None, key.out_channels or None)
            return self.kernels.kernel(x, key.height, key.width, *bounds)
        if key.kind == "depthwise":
            return self.kernels.depthwise(x, key.height, key.width)
        if key.kind == "position":
            return self.kernels.position(x, key.height, key.width)
        if key.kind == "classifier_kernel":
            return self.kernels.classifier_kernel(x)
        normalize = self.config.normalize_parameters
        if key.kind == "classifier_bias":
            bias = self.vectors.classifier_bias(x)
            return normalize_bias(bias) if normalize else bias
        tile = self.vectors.vector(x)  # (G, 2, max(O, I))
        if not normalize:
            return tile
        return jnp.stack([normalize_scale(tile[:, 0]), normalize_bias(tile[:, 1])], axis=1)


def initialize(config: GHNConfig, key: jax.Array) -> dict[str, Any]:
    """Draw a hypernetwork's parameters.

    Args:
        config: Its configuration.
        key: A random key.

    Returns:
        {"params": ...}, float32.
    """
    lowered = jax.jit(_init_fn(config)).lower(key)
    return compile_lowered(lowered)(key)


def parameter_shapes(config: GHNConfig) -> dict[str, Any]:
    """Describe what `initialize` returns, by `jax.ShapeDtypeStruct`s, without drawing anything."""
    return jax.eval_shape(_init_fn(config), jax.eval_shape(lambda: jax.random.key(0)))


def _init_fn(config: GHNConfig) -> Callable[[jax.Array], dict[str, Any]]:
    batch = GraphBatch(
        primitive=np.zeros((1, 1), np.int32),
        shape_index=np.zeros((1, 1, 4), np.int32),
        distance=np.zeros((1, 1, 1), np.uint8),
        node_mask=np.ones((1, 1), bool),
    )
    requests = {TileKey(kind): np.zeros(1, np.int32) for kind in KINDS}
    return lambda key: dict(Hypernetwork(config).init(key, batch, requests))
