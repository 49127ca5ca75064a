"""From graphs to what the programs are given, and between tiles and tensors: the host's part.

In: graphs. Out: batches padded to a bounded set of sizes, for each kind of tile the nodes to decode
it for, and for each tensor the tile it is cut from. Numpy, no JAX.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ghn_jax.graphs import (
    ArchGraph,
    GraphBatch,
    ParameterTensor,
    batch_graphs,
    schedule_nodes,
    to_graphs_tuple,
)
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.hypernetworks.embedding import shape_vocabulary
from ghn_jax.hypernetworks.normalization import parameter_factor
from ghn_jax.hypernetworks.tiling import (
    TileKey,
    decoded_sizes,
    request_key,
    tile_parameters,
    tile_slices,
    untile_gradients,
)

_SMALLEST_NUM_NODES = 128
_SMALLEST_NUM_TILES = 4
_LARGE_TILE = 5_000_000  # multiplications
_SMALL_TENSOR = 4096  # elements


class TensorGroup(NamedTuple):
    """Parameter tensors of one shape that are cut alike from one kind of tile.

    Attributes:
        shape: Of each.
        role: Of each.
        factor: That normalises them.
        places: Of each, its graph and its position among the graph's tensors.
        rows: Of each, its tile.
    """

    shape: tuple[int, ...]
    role: str
    factor: float
    places: list[tuple[int, int]]
    rows: list[int]

    def cut(self, tiles: np.ndarray) -> np.ndarray:
        """Cut the tensors from (G, ...) tiles: (n, *shape)."""
        return tile_parameters(tiles, self.rows, self.shape, self.role, self.factor, np)

    def add_gradients(self, d_tiles: np.ndarray, grads: Sequence) -> None:
        """Add gradients of the tensors to those of the tiles they were cut from.

        Args:
            d_tiles: (G, ...), changed.
            grads: For each graph its tensors' gradients, or None to leave the graph out.
        """
        pairs = zip(self.places, self.rows, strict=True)
        kept = [(grads[graph][i], row) for (graph, i), row in pairs if grads[graph] is not None]
        rows = [row for _, row in kept]
        part = tile_slices(d_tiles.shape[1:], self.shape, self.role)

        def of_parts(gradients):
            return untile_gradients(gradients, d_tiles.shape[1:], self.role, self.factor, np)

        if kept and len(set(rows)) == len(rows) and math.prod(self.shape) <= _SMALL_TENSOR:
            of_tiles = d_tiles[(rows, *part)]
            of_tiles += of_parts(np.stack([grad for grad, _ in kept])).reshape(of_tiles.shape)
            d_tiles[(rows, *part)] = of_tiles
            return
        for grad, row in kept:
            of_tile = d_tiles[(row, *part)]
            of_tile += of_parts(np.asarray(grad)[None]).reshape(of_tile.shape)


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


def prepare_graphs(
    config: GHNConfig,
    graphs: Sequence[ArchGraph],
    num_graphs: int | None = None,
    nodes_at_once: int = 1,
    with_edges: bool = False,
) -> PreparedGraphs:
    """Pad graphs and locate the source of every tensor.

    Args:
        config: Of the hypernetwork.
        graphs: One or more graphs.
        num_graphs: B, at least the number of graphs; None is that number.
        nodes_at_once: How many nodes of a graph message passing visits together.
        with_edges: Whether the batch lists the networks' edges.

    Returns:
        What a `Predictor` takes.

    Raises:
        ValueError: If there is no graph, or there are more than `num_graphs`.
    """
    if not graphs:
        raise ValueError("graphs is empty, expected at least one graph")
    places = [schedule_nodes(graph, nodes_at_once) for graph in graphs]
    num_nodes = padded_num_nodes(1 + max(int(place.max()) for place in places))
    vocabulary = shape_vocabulary(config.num_classes, config.max_shape[2])
    tuples = [to_graphs_tuple(graph) for graph in graphs]
    batch = batch_graphs(
        tuples, vocabulary.lookup, num_graphs or len(graphs), num_nodes, places, with_edges
    )
    rows: dict[TileKey, dict[int, int]] = {}  # of each node
    tensors: dict[TileKey, list[TensorGroup]] = {}
    groups: dict[tuple, tuple[TensorGroup, dict[int, int]]] = {}
    for index, graph in enumerate(graphs):
        place = (index * num_nodes + places[index]).tolist()
        for position, tensor in enumerate(graph.tensors):
            kind = (tensor.shape, tensor.role)
            if kind not in groups:
                key, factor = _source(config, *kind)
                groups[kind] = TensorGroup(*kind, factor, [], []), rows.setdefault(key, {})
                tensors.setdefault(key, []).append(groups[kind][0])
            group, row_of = groups[kind]
            group.places.append((index, position))
            group.rows.append(row_of.setdefault(place[tensor.node], len(row_of)))
    requests = {key: _pad(config, key, list(nodes)) for key, nodes in rows.items()}
    num_tensors = tuple(len(graph.tensors) for graph in graphs)
    return PreparedGraphs(batch, requests, tensors, num_tensors, tuple(places))


@functools.lru_cache(maxsize=2**14)
def _source(config: GHNConfig, shape: tuple[int, ...], role: str) -> tuple[TileKey, float]:
    """The kind of tile that such tensors are cut from, and the factor that normalises them."""
    key = request_key(ParameterTensor((), shape, 0, role), config.max_shape)
    return key, parameter_factor(config, shape, role)


def _pad(config: GHNConfig, key: TileKey, nodes: list[int]) -> np.ndarray:
    """Indices padded with the first one, whose tile is not read again."""
    num_pixels, num_elements = decoded_sizes(key, config.max_shape)
    # The last two layers of the convolutional decoder.
    num_products = num_pixels * 8 * config.hidden_size * (4 * config.hidden_size + num_elements)
    size = padded_num_tiles(len(nodes), num_products)
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
