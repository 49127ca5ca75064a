"""A graph hypernetwork as the papers write it: graph -> node embeddings -> tiles -> parameters.

In: an `ArchGraph`, or B of them padded to one size. Out: every parameter tensor of the networks
they describe. `jax.jit`, `grad`, `jvp`, `vmap` and `shard_map` all work on it. With many graphs,
compiling a program for each would take too long: `hypernetworks.predictor` runs the same stages in
programs that graphs share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from ghn_jax.graphs.arch_graph import ArchGraph
from ghn_jax.graphs.batching import GraphBatch, batch_graphs
from ghn_jax.graphs.schema import ParameterTensor
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.hypernetworks.decoders import (
    DECODERS,
    Decoders,
    VectorDecoder,
    decoder_name,
    request_tile,
)
from ghn_jax.hypernetworks.embedding import NodeEmbedding, shape_vocabulary
from ghn_jax.hypernetworks.message_passing.registry import MESSAGE_PASSING, parameter_scope
from ghn_jax.hypernetworks.normalization import normalize_vectors, parameter_factor
from ghn_jax.hypernetworks.tiling import VECTOR_KINDS, TileKey, tile_parameter
from ghn_jax.layer_norm import LayerNorm
from ghn_jax.programs.cache import compile_lowered


class Hypernetwork(nn.Module):
    """A hypernetwork, composed of the modules that its config names or of your own.

    Attributes:
        config: Says which modules it is composed of.
        message_passing: A module (B, N, D), GraphBatch -> (B, N, D) to use instead of the config's.
        decoder: A kernel `Decoder` to use instead of the config's.
        nodes_at_once: Number of consecutive nodes that message passing visits together; in the
            batches it is given, no edge joins two of them.
        reverse_only: Whether parts that have a hand-written gradient use it: the same numbers in
            less time, but `jax.jvp` does not work. Prediction on shared programs uses it.
    """

    config: GHNConfig
    message_passing: nn.Module | None = None
    decoder: nn.Module | None = None
    nodes_at_once: int = 1
    reverse_only: bool = False

    def setup(self) -> None:
        config = self.config
        size, max_shape = config.hidden_size, config.max_shape
        self.embedding = NodeEmbedding(size, config.num_classes, max_shape[2])
        if self.message_passing is None:
            self.passing = self.create_passing(self.passing_scope)
        else:
            self.passing = self.message_passing
        if config.layer_norm:
            self.norm = LayerNorm()
        for name, decoder in self.create_decoders().items():
            setattr(self, name, decoder)  # kernels, vectors

    @nn.nowrap
    def create_passing(self, name: str | None = None) -> Any:
        """Create the message passing module that the config describes."""
        config = self.config
        return MESSAGE_PASSING.create(
            config.message_passing,
            virtual_edges=config.virtual_edges,
            nodes_at_once=self.nodes_at_once,
            reverse_only=self.reverse_only,
            name=name,
        )

    @nn.nowrap
    def create_decoders(self) -> Decoders:
        """Create the kernel decoder and the decoder for everything else, both unbound."""
        config, num_channels = self.config, max(self.config.max_shape[:2])
        sizes = {
            "hidden_size": config.hidden_size,
            "max_shape": config.max_shape,
            "num_classes": config.num_classes,
            "reverse_only": self.reverse_only,
        }
        if self.decoder is None:
            kernels = DECODERS.create(config.decoder, **sizes)
        else:
            module: Any = self.decoder
            kernels = module.clone(parent=None, name=None, **sizes)
        vectors = VectorDecoder(config.hidden_size, num_channels, config.num_classes)
        return {"kernels": kernels, "vectors": vectors}

    @property
    def passing_scope(self) -> str:
        """The name of the message passing module's subtree in the parameters."""
        if self.message_passing is not None:
            return "message_passing"
        return parameter_scope(MESSAGE_PASSING[self.config.message_passing.name])

    @property
    def needs_edges(self) -> bool:
        """Whether message passing reads a batch's edges, not just its distances."""
        module = self.message_passing or MESSAGE_PASSING[self.config.message_passing.name]
        return getattr(module, "needs_edges", False)

    @nn.nowrap
    def for_programs(self, nodes_at_once: int) -> Hypernetwork:
        """Return the variant that shared programs run: faster, but reverse mode only.

        Args:
            nodes_at_once: Number of a graph's nodes that message passing visits together.

        Returns:
            The model. If your own message passing module has a method `for_programs`, the module
            is replaced by the result of that method.
        """
        passing: Any = self.message_passing
        if hasattr(passing, "for_programs"):
            passing = passing.for_programs(nodes_at_once)
        return self.clone(message_passing=passing, nodes_at_once=nodes_at_once, reverse_only=True)

    @nn.nowrap
    def parameter_names(self) -> set[str]:
        """Return the names of the parts that have parameters: the tree's top-level keys."""
        norm = {"norm"} if self.config.layer_norm else set()
        return {"embedding", self.passing_scope, "kernels", "vectors"} | norm

    def __call__(
        self,
        graph: ArchGraph | GraphBatch,
        tensors: Sequence[Sequence[ParameterTensor]] | None = None,
    ) -> Any:
        """Predict every parameter tensor.

        Args:
            graph: One graph, or B graphs padded to N nodes by `make_batch`, whose arrays may be
                traced.
            tensors: The tensors of each graph in a batch; a single graph brings its own.

        Returns:
            For an `ArchGraph`, arrays in the order and shapes of `graph.tensors`; for a batch, one
            such list for each graph.

        Raises:
            ValueError: If `graph` is a batch and `tensors` is missing.
        """
        if isinstance(graph, ArchGraph):
            batch = make_batch(self.config, [graph], self.needs_edges)
            return self(batch, [graph.tensors])[0]
        if tensors is None:
            raise ValueError("tensors is missing, expected those of each graph of the batch")
        nodes = self.embed_nodes(graph)  # (B, N, D)
        if self.is_initializing():  # create all parameters, whatever this graph needs
            kinds = [kind for decoder in self._decoders.values() for kind in decoder.kinds]
            self.decode(nodes[:1, 0], {TileKey(kind): np.zeros(1, np.int32) for kind in kinds})
        return [
            self._decode_tensors(nodes[index], of_graph) for index, of_graph in enumerate(tensors)
        ]

    def embed_nodes(self, batch: GraphBatch) -> jax.Array:
        """Embed the nodes of B graphs.

        Args:
            batch: B graphs padded to N nodes.

        Returns:
            (B, N, D) node embeddings, as the decoders read them.
        """
        nodes = self.embedding(batch.primitive, batch.shape_index)  # (B, N, D)
        nodes = self.passing(nodes, batch)
        return self.norm(nodes) if self.config.layer_norm else nodes

    @property
    def _decoders(self) -> Decoders:
        return {"kernels": self.kernels, "vectors": self.vectors}

    def _decode_tensors(
        self, nodes: jax.Array, tensors: Sequence[ParameterTensor]
    ) -> list[jax.Array]:
        """(N, D) -> the tensors of one graph; all tiles of a kind are decoded together."""
        places: dict[TileKey, list[int]] = {}  # positions in `tensors`
        for place, tensor in enumerate(tensors):
            key = request_tile(self._decoders, tensor.shape, tensor.role)
            places.setdefault(key, []).append(place)
        requests = {
            key: np.array([tensors[place].node for place in of_key], np.int32)
            for key, of_key in places.items()
        }
        tiles = self.decode(nodes, requests)
        arrays: list[Any] = [None] * len(tensors)
        for key, of_key in places.items():
            decoder = self._decoders[decoder_name(self._decoders, key)]
            for tile, place in zip(tiles[key], of_key, strict=True):
                shape, role = tensors[place].shape, tensors[place].role
                index = decoder.tile_slices(tile.shape, shape, role)
                factor = parameter_factor(self.config, shape, role)
                arrays[place] = tile_parameter(tile, shape, index, factor)
        return arrays

    def decode(self, embeddings: jax.Array, requests: Mapping[TileKey, Any]) -> dict:
        """Decode tiles for selected nodes.

        Args:
            embeddings: (M, D), the nodes of all graphs.
            requests: For each kind of tile, (G,) int32 indices into `embeddings`.

        Returns:
            For each key, the (G, ...) tiles that `TileKey` describes; vectors and classifier biases
            are normalised if the config says so.

        Raises:
            ValueError: If a key's kind is unknown.
        """
        return {key: self._decode_kind(embeddings[index], key) for key, index in requests.items()}

    def embed_and_decode(
        self, batch: GraphBatch, requests: Mapping[TileKey, Any]
    ) -> dict[TileKey, jax.Array]:
        """Run `embed_nodes`, then `decode`; `requests` holds indices into the B * N nodes."""
        embeddings = self.embed_nodes(batch)
        return self.decode(embeddings.reshape(-1, embeddings.shape[-1]), requests)

    def _decode_kind(self, x: jax.Array, key: TileKey) -> jax.Array:
        tiles = self._decoders[decoder_name(self._decoders, key)](x, key)
        is_normalized = self.config.normalize_parameters and key.kind in VECTOR_KINDS
        return normalize_vectors(tiles, key.kind) if is_normalized else tiles


def initialize(model: Hypernetwork | GHNConfig, key: jax.Array) -> dict[str, Any]:
    """Draw a hypernetwork's parameters.

    Args:
        model: The hypernetwork, or its config.
        key: A random key.

    Returns:
        {"params": ...}, float32.
    """
    return compile_lowered(jax.jit(_init_fn(model)).lower(key))(key)


def parameter_shapes(model: Hypernetwork | GHNConfig) -> dict[str, Any]:
    """Describe what `initialize` returns as `jax.ShapeDtypeStruct`s, without drawing anything."""
    if isinstance(model, GHNConfig):
        return _described_shapes(model)
    return jax.eval_shape(_init_fn(model), jax.eval_shape(lambda: jax.random.key(0)))


@functools.lru_cache(maxsize=16)
def _described_shapes(config: GHNConfig) -> dict[str, Any]:
    # Tracing takes half a second, and everyone who loads a GHN asks.
    return parameter_shapes(Hypernetwork(config))


def as_model(model: Hypernetwork | GHNConfig) -> Hypernetwork:
    """Return the hypernetwork itself, or the one that a config describes."""
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
    """Batch graphs, padding each to the size of the largest.

    Args:
        config: The hypernetwork's config, which determines the rows of its shape embeddings.
        graphs: The B graphs.
        with_edges: Whether the batch lists the networks' own edges.

    Returns:
        The batch, as numpy arrays.
    """
    vocabulary = shape_vocabulary(config.num_classes, config.max_shape[2])
    num_nodes = max(graph.num_nodes for graph in graphs)
    tuples = [graph.graph for graph in graphs]
    lookup = vocabulary.lookup
    return batch_graphs(tuples, lookup, len(graphs), num_nodes, with_edges=with_edges)


def predict_parameters(
    model: Hypernetwork, variables: Mapping[str, Any], graph: ArchGraph
) -> dict[str, Any]:
    """Predict a target network's parameters as the tree that the network takes.

    Args:
        model: The hypernetwork.
        variables: Its {"params": ...}.
        graph: The graph of an architecture, whose tensors know their paths.

    Returns:
        Nested dictionaries of arrays; the computation can be traced.

    Raises:
        ValueError: If two of the graph's tensors have the same path. In traced networks these are
            parts of one parameter, which `ghn_jax.GHN.predict` puts together.
    """
    arrays = model.apply(variables, graph)
    paths = [tensor.path for tensor in graph.tensors]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"graph has several tensors at {'/'.join(twice)!r}, expected one each")
    return unflatten_dict(dict(zip(paths, arrays, strict=True)))
