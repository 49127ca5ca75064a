"""From graphs to what the programs are given: the host's part.

In: graphs. Out: batches padded to a bounded set of sizes, for each kind of tile the nodes to decode
it for, and for each tensor the tile it is cut from. Numpy, no JAX.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ghn_jax.graphs import (
    ArchGraph,
    GraphBatch,
    batch_graphs,
    schedule_nodes,
)
from ghn_jax.hypernetworks.decoders import DecoderProtocol, Decoders, decoder_name, request_tile
from ghn_jax.hypernetworks.embedding import shape_vocabulary
from ghn_jax.hypernetworks.model import Hypernetwork
from ghn_jax.hypernetworks.normalization import parameter_factor
from ghn_jax.hypernetworks.tiling import TileIndex, TileKey

_SMALLEST_NUM_NODES = 128
_SMALLEST_NUM_TILES = 4
_LARGE_TILE = 5_000_000  # multiplications


class TensorGroup(NamedTuple):
    """Parameter tensors of one shape that are cut alike from one kind of tile.

    Attributes:
        shape: Of each.
        role: Of each.
        factor: That normalises them.
        decoder: Of the tiles, which knows what part of a tile they use.
        places: Of each, its graph and its position among the graph's tensors.
        rows: Of each, its tile.
    """

    shape: tuple[int, ...]
    role: str
    factor: float
    decoder: DecoderProtocol
    places: list[tuple[int, int]]
    rows: list[int]

    def tile_index(self, tile_shape: tuple[int, ...]) -> TileIndex:
        """Where in a tile the part lies that the tensors use."""
        return self.decoder.tile_slices(tile_shape, self.shape, self.role)


class PreparedGraphs(NamedTuple):
    """Graphs padded for the programs, and where each of their tensors comes from.

    Attributes:
        batch: B graphs padded to N nodes.
        requests: For each kind of tile, indices into the B * N nodes, padded.
        tensors: For each kind of tile, the tensors cut from it.
        num_tensors: Of each graph.
        places: Of each graph's nodes, their places among the N.
    """

    batch: GraphBatch
    requests: dict[TileKey, np.ndarray]
    tensors: dict[TileKey, list[TensorGroup]]
    num_tensors: tuple[int, ...]
    places: tuple[np.ndarray, ...]


class Preparation:
    """Pads graphs and locates the source of every tensor, for one hypernetwork.

    Args:
        model: The hypernetwork.
        nodes_at_once: How many nodes of a graph message passing visits together.
    """

    def __init__(self, model: Hypernetwork, nodes_at_once: int = 1) -> None:
        self._model = model
        self._nodes_at_once = nodes_at_once
        self._decoders: Decoders = model.create_decoders()
        self._sources: dict[tuple, tuple[TileKey, float, DecoderProtocol]] = {}

    def __call__(
        self, graphs: Sequence[ArchGraph], num_graphs: int | None = None
    ) -> PreparedGraphs:
        """Prepare graphs.

        Args:
            graphs: One or more.
            num_graphs: B, at least the number of graphs; None is that number.

        Returns:
            What a `Predictor` takes.

        Raises:
            ValueError: If there is no graph, or there are more than `num_graphs`.
        """
        if not graphs:
            raise ValueError("graphs is empty, expected at least one graph")
        config = self._model.config
        places = [schedule_nodes(graph, self._nodes_at_once) for graph in graphs]
        num_nodes = padded_num_nodes(1 + max(int(place.max()) for place in places))
        batch = batch_graphs(
            [graph.graph for graph in graphs],
            shape_vocabulary(config.num_classes, config.max_shape[2]).lookup,
            num_graphs or len(graphs),
            num_nodes,
            places,
            self._model.needs_edges,
        )
        offsets = [index * num_nodes + place for index, place in enumerate(places)]
        requests, tensors = self._locate_tensors(graphs, offsets)
        num_tensors = tuple(len(graph.tensors) for graph in graphs)
        return PreparedGraphs(batch, requests, tensors, num_tensors, tuple(places))

    def _locate_tensors(self, graphs, places):
        """The nodes to decode each kind of tile for, and the tensors cut from each kind."""
        rows: dict[TileKey, dict[int, int]] = {}  # of each node
        tensors: dict[TileKey, list[TensorGroup]] = {}
        groups: dict[tuple, tuple[TensorGroup, dict[int, int]]] = {}
        for index, graph in enumerate(graphs):
            place = places[index].tolist()
            for position, tensor in enumerate(graph.tensors):
                kind = (tensor.shape, tensor.role)
                if kind not in groups:
                    key, *source = self._source(*kind)
                    groups[kind] = TensorGroup(*kind, *source, [], []), rows.setdefault(key, {})
                    tensors.setdefault(key, []).append(groups[kind][0])
                group, row_of = groups[kind]
                group.places.append((index, position))
                group.rows.append(row_of.setdefault(place[tensor.node], len(row_of)))
        return {key: self._pad(key, list(nodes)) for key, nodes in rows.items()}, tensors

    def _source(self, shape, role) -> tuple[TileKey, float, DecoderProtocol]:
        """The kind of tile that such tensors are cut from, their factor, and the decoder."""
        if (shape, role) not in self._sources:
            key = request_tile(self._decoders, shape, role)
            decoder = self._decoders[decoder_name(self._decoders, key)]
            factor = parameter_factor(self._model.config, shape, role)
            self._sources[shape, role] = key, factor, decoder
        return self._sources[shape, role]

    def _pad(self, key: TileKey, nodes: list[int]) -> np.ndarray:
        """Indices padded with the first one, whose tile is not read again."""
        decoder = self._decoders[decoder_name(self._decoders, key)]
        size = padded_num_tiles(len(nodes), decoder.num_products(key))
        return np.array(nodes + nodes[:1] * (size - len(nodes)), np.int32)


def padded_num_nodes(num_nodes: int) -> int:
    """The next of 128, 256, 384, 512, 768, 1024, ...: time and memory follow its square."""
    size = _next_size(num_nodes, _SMALLEST_NUM_NODES)
    smaller = 3 * size // 4
    return smaller if smaller > 2 * _SMALLEST_NUM_NODES and num_nodes <= smaller else size


def _next_size(value: int, smallest: int) -> int:
    size = smallest
    while size < value:
        size *= 2
    return size


def padded_num_tiles(num_tiles: int, num_products: int) -> int:
    """The next size of a request.

    Powers of two, beyond 64 also their 3/4; from 1 on for large tiles, from 4 on for others, since
    each size is one more program.

    Args:
        num_tiles: At least so many.
        num_products: Multiplications that decoding one of them takes.

    Returns:
        The size.
    """
    size = _next_size(num_tiles, 1 if num_products >= _LARGE_TILE else _SMALLEST_NUM_TILES)
    smaller = 3 * size // 4
    return smaller if size > 64 and num_tiles <= smaller else size
