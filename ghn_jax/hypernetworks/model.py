"""A graph hypernetwork, as the papers write it: graph -> node embeddings -> tiles -> parameters.

In: an `ArchGraph`, or B of them padded to one size. Out: every parameter tensor of the networks
they stand for. `jax.jit`, `grad`, `jvp`, `vmap` and `shard_map` go through all of it. Where many
graphs go through, one program for each would be too many: `hypernetworks.predictor` runs the same
stages on programs that graphs share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ghn_jax.graphs.arch_graph import ArchGraph
from ghn_jax.graphs.batching import GraphBatch, batch_graphs, to_graphs_tuple
from ghn_jax.graphs.schema import ParameterTensor
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.hypernetworks.decoders import KERNEL_DECODERS, VectorDecoder
from ghn_jax.hypernetworks.embedding import NodeEmbedding, shape_vocabulary
from ghn_jax.hypernetworks.message_passing.gated_gnn import GatedGNN
from ghn_jax.hypernetworks.message_passing.mlp import NodeMLP
from ghn_jax.hypernetworks.normalization import (
    normalize_bias,
    normalize_scale,
    parameter_factor,
)
from ghn_jax.hypernetworks.tiling import KINDS, TileKey, request_key, tile_parameter
from ghn_jax.layer_norm import LayerNorm
from ghn_jax.programs.cache import compile_lowered


class Hypernetwork(nn.Module):
    """A hypernetwork, composed as its configuration says or of modules of one's own.

    Attributes:
        config: Which modules it is composed of.
        message_passing: A module (B, N, D), GraphBatch -> (B, N, D) instead of the configuration's.
        nodes_at_once: How many consecutive nodes message passing visits together; in the batches it
            gets, no edge joins two of them.
        reverse_only: Whether parts with a gradient written by hand use it: the same numbers in less
            time, but `jax.jvp` does not go through. What predicts on shared programs does.
    """

    config: GHNConfig
    message_passing: nn.Module | None = None
    nodes_at_once: int = 1
    reverse_only: bool = False

    def setup(self):
        config = self.config
        size, max_shape = config.hidden_size, config.max_shape
        self.embedding = NodeEmbedding(size, config.num_classes, max_shape[2])
        if self.message_passing is None and config.message_passing == "gated_gnn":
            self.gnn = GatedGNN(
                config.virtual_edges, self.nodes_at_once, reverse_only=self.reverse_only
            )
        elif self.message_passing is None:
            self.mlp = NodeMLP()
        if config.layer_norm:
            self.norm = LayerNorm()
        decoder = KERNEL_DECODERS[config.decoder]
        self.kernels = decoder(size, max_shape, config.num_classes, self.reverse_only)
        self.vectors = VectorDecoder(size, max(max_shape[:2]), config.num_classes)

    @property
    def needs_edges(self) -> bool:
        """Whether message passing reads the edges of a batch, not its distances only."""
        return getattr(self.message_passing, "needs_edges", False)

    @nn.nowrap
    def for_programs(self, nodes_at_once: int) -> Hypernetwork:
        """The same hypernetwork as shared programs run it: reverse mode only, and faster.

        Args:
            nodes_at_once: How many nodes of a graph message passing visits together.

        Returns:
            The model. A module of one's own that has a method `for_programs` is replaced by what
            that gives.
        """
        passing: Any = self.message_passing
        if hasattr(passing, "for_programs"):
            passing = passing.for_programs(nodes_at_once)
        return self.clone(message_passing=passing, nodes_at_once=nodes_at_once, reverse_only=True)

    def parameter_names(self) -> set[str]:
        """Names of the parts that have parameters, the first level of their tree."""
        norm = {"norm"} if self.config.layer_norm else set()
        own = "gnn" if self.config.message_passing == "gated_gnn" else "mlp"
        passing = own if self.message_passing is None else "message_passing"
        return {"embedding", passing, "kernels", "vectors"} | norm

    def __call__(
        self,
        graph: ArchGraph | GraphBatch,
        tensors: Sequence[Sequence[ParameterTensor]] | None = None,
    ) -> Any:
        """Predict every parameter tensor.

        Args:
            graph: A graph; or B graphs padded to N nodes, as `make_batch` makes them, whose arrays
                may be traced.
            tensors: For each graph of a batch, its tensors.

        Returns:
            Of an `ArchGraph`, arrays in the order and shapes of `graph.tensors`; of a batch, such a
            list for each graph.

        Raises:
            ValueError: If a batch comes without tensors.
        """
        if isinstance(graph, ArchGraph):
            batch = make_batch(self.config, [graph], self.needs_edges)
            return self(batch, [graph.tensors])[0]
        if tensors is None:
            raise ValueError("tensors is missing, expected those of each graph of the batch")
        nodes = self.embed_nodes(graph)  # (B, N, D)
        if self.is_initializing():  # all parameters are drawn, whatever this graph asks for
            self.decode(nodes[:1, 0], {TileKey(kind): np.zeros(1, np.int32) for kind in KINDS})
        return [
            self._decode_tensors(nodes[index], of_graph) for index, of_graph in enumerate(tensors)
        ]

    def embed_nodes(self, batch: GraphBatch) -> jax.Array:
        """Embed the nodes of B graphs.

        Args:
            batch: B graphs padded to N nodes.

        Returns:
            (B, N, D), what the decoders read.
        """
        nodes = self.embedding(batch.primitive, batch.shape_index)  # (B, N, D)
        nodes = self._pass_messages(nodes, batch)
        return self.norm(nodes) if self.config.layer_norm else nodes

    def _pass_messages(self, nodes: jax.Array, batch: GraphBatch) -> jax.Array:
        if self.message_passing is not None:
            return self.message_passing(nodes, batch)
        is_gated = self.config.message_passing == "gated_gnn"
        return self.gnn(nodes, batch) if is_gated else self.mlp(nodes, batch)

    def _decode_tensors(
        self, nodes: jax.Array, tensors: Sequence[ParameterTensor]
    ) -> list[jax.Array]:
        """(N, D) -> the tensors of one graph: each kind of tile once, of the nodes that have it."""
        places: dict[TileKey, list[int]] = {}  # of the tensors
        for place, tensor in enumerate(tensors):
            places.setdefault(request_key(tensor), []).append(place)
        requests = {
            key: np.array([tensors[place].node for place in of_key], np.int32)
            for key, of_key in places.items()
        }
        tiles = self.decode(nodes, requests)
        arrays: list[Any] = [None] * len(tensors)
        for key, of_key in places.items():
            for tile, place in zip(tiles[key], of_key, strict=True):
                tensor = tensors[place]
                factor = parameter_factor(self.config, tensor.shape, tensor.role)
                arrays[place] = tile_parameter(tile, tensor.shape, tensor.role, factor)
        return arrays

    def decode(self, embeddings: jax.Array, requests: Mapping[TileKey, Any]) -> dict:
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

    def embed_and_decode(
        self, batch: GraphBatch, requests: Mapping[TileKey, Any]
    ) -> dict[TileKey, jax.Array]:
        """As `embed_nodes` and `decode`; indices of `requests` count the B * N nodes."""
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


def initialize(model: Hypernetwork | GHNConfig, key: jax.Array) -> dict[str, Any]:
    """Draw a hypernetwork's parameters.

    Args:
        model: The hypernetwork, or the configuration of one.
        key: A random key.

    Returns:
        {"params": ...}, float32.
    """
    return compile_lowered(jax.jit(_init_fn(model)).lower(key))(key)


def parameter_shapes(model: Hypernetwork | GHNConfig) -> dict[str, Any]:
    """Describe what `initialize` returns, by `jax.ShapeDtypeStruct`s, without drawing anything."""
    return jax.eval_shape(_init_fn(model), jax.eval_shape(lambda: jax.random.key(0)))


def as_model(model: Hypernetwork | GHNConfig) -> Hypernetwork:
    """The hypernetwork itself, or the one that a configuration describes."""
    return Hypernetwork(model) if isinstance(model, GHNConfig) else model


def _init_fn(model: Hypernetwork | GHNConfig) -> Callable[[jax.Array], dict[str, Any]]:
    batch = GraphBatch(
        primitive=np.zeros((1, 1), np.int32),
        shape_index=np.zeros((1, 1, 4), np.int32),
        distance=np.zeros((1, 1, 1), np.uint8),
        node_mask=np.ones((1, 1), bool),
        edges=np.full((1, 1, 2), -1, np.int32),
    )
    return lambda key: dict(as_model(model).init(key, batch, [()]))


def make_batch(
    config: GHNConfig, graphs: Sequence[ArchGraph], with_edges: bool = False
) -> GraphBatch:
    """Pad graphs to the largest of them.

    Args:
        config: Of the hypernetwork, whose shape embeddings give the rows of shapes.
        graphs: B graphs.
        with_edges: Whether the batch lists the networks' edges.

    Returns:
        The batch, numpy.
    """
    vocabulary = shape_vocabulary(config.num_classes, config.max_shape[2])
    num_nodes = max(graph.num_nodes for graph in graphs)
    tuples = [to_graphs_tuple(graph) for graph in graphs]
    lookup = vocabulary.lookup
    return batch_graphs(tuples, lookup, len(graphs), num_nodes, with_edges=with_edges)


def predict_parameters(
    model: Hypernetwork, variables: Mapping[str, Any], graph: ArchGraph
) -> dict[str, Any]:
    """Predict a target's parameters as the tree that its network takes.

    Args:
        model: A hypernetwork.
        variables: {"params": ...} of it.
        graph: Of an architecture, whose tensors know their paths.

    Returns:
        Nested dictionaries of arrays, traceable.

    Raises:
        ValueError: If two tensors of the graph have the same path: parts of one parameter, as
            traced networks have them, which `ghn_jax.GHN.predict` puts together.
    """
    arrays = model.apply(variables, graph)
    paths = [tensor.path for tensor in graph.tensors]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"graph has several tensors at {'/'.join(twice)!r}, expected one each")
    return unflatten_dict(dict(zip(paths, arrays, strict=True)))
