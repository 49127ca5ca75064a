"""Prepare graphs for the compiled programs, on the host.

In: graphs. Out: batches padded to a bounded set of sizes, the nodes for which to decode each kind
of tile, and the tile from which to cut each tensor. Numpy, no JAX.
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
    """Parameter tensors of one shape and role, all cut in the same way from one kind of tile.

    Attributes:
        shape: Each tensor's shape.
        role: Each tensor's role.
        factor: The factor that normalises the tensors.
        decoder: The decoder of the tiles, which knows what part of a tile the tensors use.
        places: For each tensor, the index of its graph and its position in that graph's tensors.
        rows: For each tensor, the index of its tile.
    """

    shape: tuple[int, ...]
    role: str
    factor: float
    decoder: DecoderProtocol
    places: list[tuple[int, int]]
    rows: list[int]

    def tile_index(self, tile_shape: tuple[int, ...]) -> TileIndex:
        """Return the index of the part of a tile that the tensors use."""
        return self.decoder.tile_slices(tile_shape, self.shape, self.role)


class PreparedGraphs(NamedTuple):
    """Graphs padded for the programs, and where each of their tensors comes from.

    Attributes:
        batch: B graphs padded to N nodes.
        requests: For each kind of tile, indices into the B * N nodes, padded.
        tensors: For each kind of tile, the tensors cut from it.
        num_tensors: Number of tensors in each graph.
        places: For each graph, the places of its nodes among the N.
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
        nodes_at_once: Number of a graph's nodes that message passing visits together.

    Attributes:
        decoders: The hypernetwork's decoders, unbound.
    """

    def __init__(self, model: Hypernetwork, nodes_at_once: int = 1) -> None:
        self._model = model
        self._nodes_at_once = nodes_at_once
        self.decoders: Decoders = model.create_decoders()
        self._sources: dict[tuple, tuple[TileKey, float, DecoderProtocol]] = {}

    def __call__(
        self, graphs: Sequence[ArchGraph], num_graphs: int | None = None
    ) -> PreparedGraphs:
        """Prepare graphs.

        Args:
            graphs: One or more graphs.
            num_graphs: Batch size B, at least the number of graphs; None means that number.

        Returns:
            The input of a `Predictor`.

        Raises:
            ValueError: If there are no graphs, or more than `num_graphs`.
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

    def _locate_tensors(
        self, graphs: Sequence[ArchGraph], places: Sequence[np.ndarray]
    ) -> tuple[dict[TileKey, np.ndarray], dict[TileKey, list[TensorGroup]]]:
        """Find the nodes for which each kind of tile is decoded, and the tensors cut from it."""
        rows: dict[TileKey, dict[int, int]] = {}  # the tile of each node
        tensors: dict[TileKey, list[TensorGroup]] = {}
        groups: dict[tuple, tuple[TensorGroup, dict[int, int]]] = {}
        for index, graph in enumerate(graphs):
            place = places[index].tolist()
            for position, tensor in enumerate(graph.tensors):
                kind = (tensor.shape, tensor.role)
                if kind not in groups:
                    key, factor, decoder = self._source(*kind)
                    group = TensorGroup(*kind, factor, decoder, [], [])
                    groups[kind] = group, rows.setdefault(key, {})
                    tensors.setdefault(key, []).append(group)
                group, row_of = groups[kind]
                group.places.append((index, position))
                group.rows.append(row_of.setdefault(place[tensor.node], len(row_of)))
        return {key: self._pad(key, list(nodes)) for key, nodes in rows.items()}, tensors

    def _source(self, shape: tuple[int, ...], role: str) -> tuple[TileKey, float, DecoderProtocol]:
        """Return the kind of tile that such tensors are cut from, their factor and the decoder."""
        if (shape, role) not in self._sources:
            key = request_tile(self.decoders, shape, role)
            decoder = self.decoders[decoder_name(self.decoders, key)]
            factor = parameter_factor(self._model.config, shape, role)
            self._sources[shape, role] = key, factor, decoder
        return self._sources[shape, role]

    def _pad(self, key: TileKey, nodes: list[int]) -> np.ndarray:
        """Pad indices by repeating the first one; the additional tiles are never read."""
        decoder = self.decoders[decoder_name(self.decoders, key)]
        size = padded_num_tiles(len(nodes), decoder.num_products(key))
        return np.array(nodes + nodes[:1] * (size - len(nodes)), np.int32)


def padded_num_nodes(num_nodes: int) -> int:
    """Round up to 128, 256, 384, 512, 768, 1024, ...; time and memory grow with the square."""
    size = _next_size(num_nodes, _SMALLEST_NUM_NODES)
    smaller = 3 * size // 4
    return smaller if smaller > 2 * _SMALLEST_NUM_NODES and num_nodes <= smaller else size


def _next_size(value: int, smallest: int) -> int:
    size = smallest
    while size < value:
        size *= 2
    return size


def padded_num_tiles(num_tiles: int, num_products: int) -> int:
    """Round the number of tiles in a request up to one of a few sizes.

    Sizes are powers of two and, beyond 64, also 3/4 of them. They start at 1 for expensive tiles
    and at 4 for others, since each size means one more program.

    Args:
        num_tiles: Number of tiles needed.
        num_products: Number of multiplications that decoding one tile takes.

    Returns:
        The padded number of tiles.
    """
    size = _next_size(num_tiles, 1 if num_products >= _LARGE_TILE else _SMALLEST_NUM_TILES)
    smaller = 3 * size // 4
    return smaller if size > 64 and num_tiles <= smaller else size
