"""Predict the parameters of target networks, and pull their gradients back into the hypernetwork.

In: graphs. Out: every parameter tensor of every graph, in the order of `graph.tensors`, with
exactly the target's shapes. Architectures differ in everything, compiled programs must not: message
passing is one program per padded number of nodes, decoding one per kind of tile and padded number
of tiles (powers of two). Tiles become parameters on the host, where cutting ~150 tensors per
architecture costs nothing to dispatch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.compilation import ProgramCache, VjpPrograms, build_vjp, compile_lowered
from ghn_jax.graphs import ArchGraph, GraphBatch, ParameterTensor, batch_graphs, to_graphs_tuple
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.hypernetworks.embedding import shape_vocabulary
from ghn_jax.hypernetworks.hypernetwork import Hypernetwork, initialize
from ghn_jax.hypernetworks.normalization import kernel_factor
from ghn_jax.hypernetworks.tiling import (
    TileKey,
    request_key,
    tile_parameter,
    tile_slices,
    untile_gradient,
)
from ghn_jax.relocation import ProgramsOnDevice

PyTree = Any
Array = Any  # numpy or JAX
_DECODERS = ("kernels", "vectors")  # submodules of the hypernetwork
_SMALLEST_NUM_NODES = 128
_SMALLEST_NUM_TILES = 4
# Embeddings are padded to this many nodes per graph, so that decoders see one size for most
# batches.
_NUM_DECODED_NODES = 512


class _TensorSource(NamedTuple):
    """Where a parameter tensor comes from: a tile, and the factor that normalises it."""

    tensor: ParameterTensor
    key: TileKey
    row: int
    factor: float


class PreparedGraphs(NamedTuple):
    """Graphs padded for the programs, and where each of their tensors comes from.

    Attributes:
        batch: B graphs padded to N nodes.
        requests: For each kind of tile, indices into the B * N nodes, padded.
        sources: For each graph, for each of its tensors.
    """

    batch: GraphBatch
    requests: dict[TileKey, np.ndarray]
    sources: tuple[tuple[_TensorSource, ...], ...]


class Predictor:
    """A hypernetwork with its compiled programs.

    Args:
        config: Of the hypernetwork.
        num_compile_threads: How many programs compile at the same time.
        programs: Compiled programs, shared with predictors on other devices; None makes a new
            cache.
    """

    def __init__(
        self,
        config: GHNConfig,
        num_compile_threads: int = 2,
        programs: ProgramCache | ProgramsOnDevice | None = None,
    ) -> None:
        self.config = config
        self._network = Hypernetwork(config)
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
        num_nodes = padded_num_nodes(max(g.num_nodes for g in graphs))
        num_graphs = num_graphs or len(graphs)
        vocabulary = shape_vocabulary(self.config.num_classes, self.config.max_shape[2])
        tuples = [to_graphs_tuple(graph) for graph in graphs]
        batch = batch_graphs(tuples, vocabulary.lookup, num_graphs, num_nodes)
        rows: dict[TileKey, dict[int, int]] = {}
        sources = []
        for index, graph in enumerate(graphs):
            graph_sources = []
            for tensor in graph.tensors:
                key, factor = self._request(tensor)
                nodes = rows.setdefault(key, {})
                node = index * num_nodes + tensor.node
                row = nodes.setdefault(node, len(nodes))
                graph_sources.append(_TensorSource(tensor, key, row, factor))
            sources.append(tuple(graph_sources))
        requests = {key: _pad(list(nodes)) for key, nodes in rows.items()}
        return PreparedGraphs(batch, requests, tuple(sources))

    def embed_nodes(self, ghn_params: PyTree, prepared: PreparedGraphs) -> jax.Array:
        """Embed the nodes of the graphs: (B, N, D), padding included."""
        batch = prepared.batch
        embeddings, _ = self._embed_programs(ghn_params, batch).forward(ghn_params, batch)
        return embeddings[: batch.primitive.size].reshape(*batch.primitive.shape, -1)

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

    def _predict(self, ghn_params, prepared):
        batch = prepared.batch
        embeddings, embed_residuals = self._embed_programs(ghn_params, batch).forward(
            ghn_params, batch
        )
        outputs = {}
        for key, nodes in prepared.requests.items():
            programs = self._decode_programs(ghn_params, key, embeddings, nodes)
            outputs[key] = programs.forward(ghn_params[_decoder(key)], embeddings, nodes)
        tiles = {key: np.asarray(tile) for key, (tile, _) in outputs.items()}
        target_params = [
            [
                tile_parameter(tiles[s.key][s.row], s.tensor.shape, s.tensor.role, s.factor, np)
                for s in graph
            ]
            for graph in prepared.sources
        ]
        residuals = {key: residual for key, (_, residual) in outputs.items()}
        return target_params, (embeddings, embed_residuals, tiles, residuals)

    def _pull_back(self, ghn_params, prepared, forward_state, grads):
        embeddings, embed_residuals, tiles, residuals = forward_state
        d_tiles = {key: np.zeros_like(tile) for key, tile in tiles.items()}
        for graph, graph_grads in zip(prepared.sources, grads, strict=False):
            for source, grad in zip(graph, graph_grads or (), strict=False):
                tile = d_tiles[source.key][source.row]
                tensor = source.tensor
                used = untile_gradient(np.asarray(grad), tile.shape, tensor.role, source.factor, np)
                part = tile[tile_slices(tile.shape, tensor.shape, tensor.role)]
                part += used.reshape(part.shape)
        d_decoders, d_embeddings = self._zeros(ghn_params, embeddings)
        for key, nodes in prepared.requests.items():
            decoder = _decoder(key)
            arguments = (ghn_params[decoder], embeddings, nodes)
            backward = self._decode_backward(ghn_params, key, embeddings, nodes)
            totals = (d_decoders[decoder], d_embeddings)
            totals = backward(arguments, residuals[key], d_tiles[key], totals)
            d_decoders[decoder], d_embeddings = totals
        batch = prepared.batch
        backward = self._programs.get(
            ("embed backward", batch.primitive.shape),
            lambda: self._build_embed_backward(ghn_params, batch),
        )
        # The decoders have no part in the embeddings, nor the others in decoding.
        (d_params,) = backward((ghn_params, batch), embed_residuals, d_embeddings)
        return {**d_params, **d_decoders}

    def _zeros(self, ghn_params, embeddings) -> tuple[dict[str, PyTree], Array]:
        """New arrays in which gradients are summed: of the decoders, and of the embeddings."""
        shapes = ({name: ghn_params[name] for name in _DECODERS}, embeddings)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
        build = lambda: compile_lowered(jax.jit(zeros).lower())  # noqa: E731
        return self._programs.get(("zeros", embeddings.shape), build)()

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

    def _build_embed_backward(self, ghn_params, batch):
        build = lambda: self._build_embed(ghn_params, batch)  # noqa: E731
        programs = self._programs.build_here(("embed", batch.primitive.shape), build)
        return compile_lowered(programs.lower_backward())

    def _decode_programs(self, ghn_params, key, embeddings, nodes) -> VjpPrograms:
        build = lambda: self._build_decode(ghn_params, key, embeddings, nodes)  # noqa: E731
        return self._programs.get(("decode", key, embeddings.shape, nodes.shape), build)

    def _decode_backward(self, ghn_params, key, embeddings, nodes):
        def build():
            program_key = ("decode", key, embeddings.shape, nodes.shape)
            build_forward = lambda: self._build_decode(ghn_params, key, embeddings, nodes)  # noqa: E731
            programs = self._programs.build_here(program_key, build_forward)
            # Sums over all of the decoder's parameters: a million elements for each kind of tile.
            lowered = programs.lower_backward(accumulates=True)
            return compile_lowered(lowered, has_large_fusions=True)

        return self._programs.get(("decode backward", key, embeddings.shape, nodes.shape), build)

    def _build_decode(self, ghn_params, key, embeddings, nodes) -> VjpPrograms:
        decoder = _decoder(key)

        def decode(params, embeddings, nodes):
            variables = {"params": {decoder: params}}
            return self._network.apply(variables, embeddings, {key: nodes}, method="decode")[key]

        return build_vjp(decode, (ghn_params[decoder], embeddings, nodes), 2)

    def _request(self, tensor: ParameterTensor) -> tuple[TileKey, float]:
        """The kind of tile a tensor is cut from, and its factor; of a few hundred kinds."""
        kind = (tensor.role, tensor.shape)
        if kind not in self._requests:
            is_normalized = self.config.normalize_parameters and len(tensor.shape) > 1
            factor = kernel_factor(tensor.shape, tensor.role) if is_normalized else 1.0
            self._requests[kind] = request_key(tensor, self.config.max_shape), factor
        return self._requests[kind]


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


def _pad(nodes: list[int]) -> np.ndarray:
    """Indices padded to a power of two with the first one, whose tile is not read again."""
    size = _next_size(len(nodes), _SMALLEST_NUM_TILES)
    return np.array(nodes + nodes[:1] * (size - len(nodes)), np.int32)
