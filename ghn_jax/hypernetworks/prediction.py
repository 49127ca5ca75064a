"""Predict the parameters of target networks, and pull their gradients back into the hypernetwork.

In: graphs. Out: every parameter tensor of every graph, in the order of `graph.tensors`, with
exactly the target's shapes. Architectures differ in everything, compiled programs must not: message
passing is one program per padded number of nodes, decoding one per kind of tile and padded number
of tiles (powers of two). Tiles become parameters on the host, where cutting ~150 tensors per
architecture costs nothing to dispatch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.compilation import (
    ProgramCache,
    Progress,
    VjpPrograms,
    build_vjp,
    compile_frequent,
    compile_lowered,
    no_progress,
)
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
from ghn_jax.hypernetworks.hypernetwork import Hypernetwork, initialize, parameter_shapes
from ghn_jax.hypernetworks.normalization import kernel_factor
from ghn_jax.hypernetworks.tiling import (
    TileKey,
    decoded_sizes,
    request_key,
    tile_parameters,
    tile_slices,
    untile_gradients,
)
from ghn_jax.relocation import ProgramsOnDevice

PyTree = Any
Array = Any  # numpy or JAX
_DECODERS = ("kernels", "vectors")  # submodules of the hypernetwork
_SMALLEST_NUM_NODES = 128
_SMALLEST_NUM_TILES = 4
_LARGE_TILE = 5_000_000  # multiplications
_SMALL_TENSOR = 4096  # elements
# Embeddings are padded to this many nodes per graph, so that decoders see one size for most
# batches.
_NUM_DECODED_NODES = 512


class _Tensors(NamedTuple):
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
    tensors: dict[TileKey, list[_Tensors]]
    num_tensors: tuple[int, ...]
    places: tuple[np.ndarray, ...]


class Predictor:
    """A hypernetwork with its compiled programs.

    Args:
        config: Of the hypernetwork.
        num_compile_threads: How many programs compile at the same time.
        programs: Compiled programs, shared with predictors on other devices; None makes a new
            cache.
        nodes_at_once: How many nodes of each graph message passing visits together; the numbers are
            the same. None is 1 on CPUs, where more is not faster (`benchmarks/hypernetwork.py`),
            and 2 on accelerators, whose time follows the number of steps: 1.8 times fewer.
    """

    def __init__(
        self,
        config: GHNConfig,
        num_compile_threads: int = 2,
        programs: ProgramCache | ProgramsOnDevice | None = None,
        nodes_at_once: int | None = None,
    ) -> None:
        self.config = config
        self._nodes_at_once = nodes_at_once or (1 if jax.default_backend() == "cpu" else 2)
        self._network = Hypernetwork(config, self._nodes_at_once)
        self._programs = programs or ProgramCache(num_compile_threads)
        self._requests: dict[tuple[str, tuple[int, ...]], tuple[TileKey, float]] = {}

    @property
    def num_compilations(self) -> int:
        """How many programs were compiled so far."""
        return self._programs.num_compilations

    def init(self, key: jax.Array) -> PyTree:
        """Draw the hypernetwork's parameters."""
        return initialize(self.config, key)["params"]

    def prepare(self, graphs: Sequence[ArchGraph], num_graphs: int | None = None) -> PreparedGraphs:
        """Pad graphs and locate the source of every tensor; on the host, no JAX.

        Args:
            graphs: One or more graphs.
            num_graphs: B, at least the number of graphs; None is that number.

        Returns:
            What `predict` takes.

        Raises:
            ValueError: If there is no graph, or there are more than `num_graphs`.
        """
        if not graphs:
            raise ValueError("graphs is empty, expected at least one graph")
        places = [schedule_nodes(graph, self._nodes_at_once) for graph in graphs]
        num_nodes = padded_num_nodes(1 + max(int(place.max()) for place in places))
        num_graphs = num_graphs or len(graphs)
        vocabulary = shape_vocabulary(self.config.num_classes, self.config.max_shape[2])
        tuples = [to_graphs_tuple(graph) for graph in graphs]
        batch = batch_graphs(tuples, vocabulary.lookup, num_graphs, num_nodes, places)
        rows: dict[TileKey, dict[int, int]] = {}
        groups: dict[TileKey, dict[tuple, _Tensors]] = {}
        for index, graph in enumerate(graphs):
            place = (index * num_nodes + places[index]).tolist()
            for position, tensor in enumerate(graph.tensors):
                key, factor = self._request(tensor)
                nodes, kind = rows.setdefault(key, {}), (tensor.shape, tensor.role)
                of_key = groups.setdefault(key, {})
                tensors = of_key.get(kind)
                if tensors is None:
                    tensors = of_key[kind] = _Tensors(*kind, factor, [], [])
                tensors.places.append((index, position))
                tensors.rows.append(nodes.setdefault(place[tensor.node], len(nodes)))
        requests = {key: self._pad(key, list(nodes)) for key, nodes in rows.items()}
        tensors = {key: list(of_key.values()) for key, of_key in groups.items()}
        num_tensors = tuple(len(graph.tensors) for graph in graphs)
        return PreparedGraphs(batch, requests, tensors, num_tensors, tuple(places))

    def embed_nodes(self, ghn_params: PyTree, prepared: PreparedGraphs) -> list[np.ndarray]:
        """Embed the nodes of the graphs: for each an array (N, D), in the order of its nodes."""
        batch = prepared.batch
        embeddings, _ = self._embed_programs(ghn_params, batch).forward(ghn_params, batch)
        rows = np.asarray(embeddings)[: batch.primitive.size].reshape(*batch.primitive.shape, -1)
        return [rows[index, place] for index, place in enumerate(prepared.places)]

    def predict(self, ghn_params: PyTree, prepared: PreparedGraphs) -> list[list[np.ndarray]]:
        """Predict every parameter tensor of every graph.

        Args:
            ghn_params: Of the hypernetwork.
            prepared: Of `prepare`.

        Returns:
            For each graph, arrays in the order of its `tensors`, in their shapes.
        """
        return self._predict(ghn_params, prepared)[0]

    def predict_with_pull_back(
        self, ghn_params: PyTree, prepared: PreparedGraphs
    ) -> tuple[list[list[np.ndarray]], Callable[[Sequence], PyTree]]:
        """Like `predict`, with a function from the gradients of the parameters to those of the GHN.

        Returns:
            The parameters, and `pull_back(grads)`, where `grads` holds for each graph arrays in the
            order of its tensors, or None to leave the graph out.
        """
        target_params, forward_state = self._predict(ghn_params, prepared)

        def pull_back(grads: Sequence) -> PyTree:
            return self._pull_back(ghn_params, prepared, forward_state, grads)

        return target_params, pull_back

    def warm_up(
        self,
        prepared: Sequence[PreparedGraphs],
        coverage: float = 0.99,
        share: tuple[int, int] = (0, 1),
        progress: Progress = no_progress,
    ) -> int:
        """Compile the most frequent programs of a sample of batches, in parallel threads.

        Args:
            prepared: The sample.
            coverage: As in `compile_frequent`, like the next two.
            share: Which of these programs.
            progress: Wraps them while they are waited for.

        Returns:
            How many programs that was.
        """
        ghn_params = parameter_shapes(self.config)["params"]
        calls = (call for one in prepared for call in self._calls(ghn_params, one))
        return compile_frequent(self._programs, calls, coverage, share, progress)

    def _calls(self, ghn_params, prepared):
        """For every call of a step, the key of its last program and what builds that."""
        batch = prepared.batch
        num_rows = len(batch.primitive) * max(_NUM_DECODED_NODES, batch.primitive.shape[1])
        shape = (num_rows, self.config.hidden_size)
        embeddings = jax.ShapeDtypeStruct(shape, jnp.float32)
        yield self._embed_backward_call(ghn_params, batch)
        yield self._zeros_call(ghn_params, embeddings)
        for key, nodes in prepared.requests.items():
            yield self._decode_backward_call(ghn_params, key, embeddings, nodes)

    def _predict(self, ghn_params, prepared):
        batch = prepared.batch
        embeddings, embed_residuals = self._embed_programs(ghn_params, batch).forward(
            ghn_params, batch
        )
        outputs = {}
        for key, nodes in prepared.requests.items():
            programs = self._decode_programs(ghn_params, key, embeddings, nodes)
            outputs[key] = programs.forward(ghn_params[_decoder(key)], embeddings, nodes)
        target_params: list[list] = [[None] * num for num in prepared.num_tensors]
        for key, (tiles, _) in outputs.items():  # while the device decodes the next kinds
            tiles = np.asarray(tiles)
            for group in prepared.tensors[key]:
                cut = tile_parameters(tiles, group.rows, *group[:3], np)
                for (graph, position), tensor in zip(group.places, cut, strict=True):
                    target_params[graph][position] = tensor
        return target_params, (embeddings, embed_residuals, outputs)

    def _pull_back(self, ghn_params, prepared, forward_state, grads):
        embeddings, embed_residuals, outputs = forward_state
        d_decoders, d_embeddings = self._zeros(ghn_params, embeddings)
        for key, nodes in prepared.requests.items():
            tiles, residuals = outputs[key]
            d_tiles = np.zeros(tiles.shape, tiles.dtype)
            for group in prepared.tensors[key]:
                _add_gradients(d_tiles, group, grads)
            decoder = _decoder(key)
            arguments = (ghn_params[decoder], embeddings, nodes)
            call = self._decode_backward_call(ghn_params, key, embeddings, nodes)
            backward = self._programs.get(*call)
            totals = (d_decoders[decoder], d_embeddings)
            # Returns at once: the next tiles are put together while the device works.
            d_decoders[decoder], d_embeddings = backward(arguments, residuals, d_tiles, totals)
        batch = prepared.batch
        backward = self._programs.get(*self._embed_backward_call(ghn_params, batch))
        # The decoders have no part in the embeddings, nor the others in decoding.
        (d_params,) = backward((ghn_params, batch), embed_residuals, d_embeddings)
        return {**d_params, **d_decoders}

    def _zeros(self, ghn_params, embeddings) -> tuple[dict[str, PyTree], Array]:
        """New arrays in which gradients are summed: of the decoders, and of the embeddings."""
        return self._programs.get(*self._zeros_call(ghn_params, embeddings))()

    def _zeros_call(self, ghn_params, embeddings):
        shapes = ({name: ghn_params[name] for name in _DECODERS}, embeddings)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
        return ("zeros", embeddings.shape), lambda: compile_lowered(jax.jit(zeros).lower())

    def _embed_programs(self, ghn_params, batch) -> VjpPrograms:
        build = lambda: self._build_embed(ghn_params, batch)  # noqa: E731
        return self._programs.get(("embed", batch.primitive.shape), build)

    def _build_embed(self, ghn_params, batch) -> VjpPrograms:
        def embed(params, batch):
            nodes = self._network.apply({"params": params}, batch, method="embed_nodes")
            rows = nodes.reshape(-1, nodes.shape[-1])  # (B * N, D)
            missing = nodes.shape[0] * max(_NUM_DECODED_NODES - nodes.shape[1], 0)
            return jnp.pad(rows, ((0, missing), (0, 0)))

        return build_vjp(embed, (ghn_params, batch), 1)

    def _embed_backward_call(self, ghn_params, batch):
        def build():
            build_forward = lambda: self._build_embed(ghn_params, batch)  # noqa: E731
            programs = self._programs.build_here(("embed", batch.primitive.shape), build_forward)
            return compile_lowered(programs.lower_backward())

        return ("embed backward", batch.primitive.shape), build

    def _decode_programs(self, ghn_params, key, embeddings, nodes) -> VjpPrograms:
        build = lambda: self._build_decode(ghn_params, key, embeddings, nodes)  # noqa: E731
        return self._programs.get(("decode", key, embeddings.shape, nodes.shape), build)

    def _decode_backward_call(self, ghn_params, key, embeddings, nodes):
        def build():
            program_key = ("decode", key, embeddings.shape, nodes.shape)
            build_forward = lambda: self._build_decode(ghn_params, key, embeddings, nodes)  # noqa: E731
            programs = self._programs.build_here(program_key, build_forward)
            # Sums over all of the decoder's parameters: a million elements for each kind of tile.
            lowered = programs.lower_backward(accumulates=True)
            return compile_lowered(lowered, has_large_fusions=True)

        return ("decode backward", key, embeddings.shape, nodes.shape), build

    def _build_decode(self, ghn_params, key, embeddings, nodes) -> VjpPrograms:
        decoder = _decoder(key)

        def decode(params, embeddings, nodes):
            variables = {"params": {decoder: params}}
            return self._network.apply(variables, embeddings, {key: nodes}, method="decode")[key]

        return build_vjp(decode, (ghn_params[decoder], embeddings, nodes), 2)

    def _pad(self, key: TileKey, nodes: list[int]) -> np.ndarray:
        """Indices padded with the first one, whose tile is not read again."""
        num_pixels, num_elements = decoded_sizes(key, self.config.max_shape)
        hidden = self.config.hidden_size
        # The last two layers of the convolutional decoder.
        num_products = num_pixels * 8 * hidden * (4 * hidden + num_elements)
        size = padded_num_tiles(len(nodes), num_products)
        return np.array(nodes + nodes[:1] * (size - len(nodes)), np.int32)

    def _request(self, tensor: ParameterTensor) -> tuple[TileKey, float]:
        """The kind of tile a tensor is cut from, and its factor; of a few hundred kinds."""
        kind = (tensor.role, tensor.shape)
        if kind not in self._requests:
            is_normalized = self.config.normalize_parameters and len(tensor.shape) > 1
            factor = kernel_factor(tensor.shape, tensor.role) if is_normalized else 1.0
            self._requests[kind] = request_key(tensor, self.config.max_shape), factor
        return self._requests[kind]


def _add_gradients(d_tiles: np.ndarray, group: _Tensors, grads: Sequence) -> None:
    """Add to the gradients of tiles those of tensors cut from them, but of graphs left out."""
    pairs = zip(group.places, group.rows, strict=True)
    kept = [(grads[graph][i], row) for (graph, i), row in pairs if grads[graph] is not None]
    rows = [row for _, row in kept]
    part = tile_slices(d_tiles.shape[1:], group.shape, group.role)

    def of_parts(gradients):
        return untile_gradients(gradients, d_tiles.shape[1:], group.role, group.factor, np)

    if kept and len(set(rows)) == len(rows) and math.prod(group.shape) <= _SMALL_TENSOR:
        of_tiles = d_tiles[(rows, *part)]
        of_tiles += of_parts(np.stack([grad for grad, _ in kept])).reshape(of_tiles.shape)
        d_tiles[(rows, *part)] = of_tiles
        return
    for grad, row in kept:
        of_tile = d_tiles[(row, *part)]
        of_tile += of_parts(np.asarray(grad)[None]).reshape(of_tile.shape)


def _decoder(key: TileKey) -> str:
    """The submodule that decodes a kind of tile."""
    return "vectors" if key.kind in ("vector", "classifier_bias") else "kernels"


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
