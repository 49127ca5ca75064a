"""Predict the parameters of target networks, and pull their gradients back into the hypernetwork.

In: graphs. Out: every parameter tensor of every graph, in the order of `graph.tensors`, with
exactly the target's shapes. Architectures differ in everything, compiled programs must not: message
passing is one program per padded number of nodes, decoding one per kind of tile and padded number
of tiles. (A single program for both would be a new one for every combination of numbers of tiles.)
Tiles become parameters on the host, where cutting ~150 tensors per architecture costs nothing to
dispatch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.graphs import ArchGraph, GraphBatch
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.hypernetworks.decoders import decoder_name
from ghn_jax.hypernetworks.model import Hypernetwork, as_model, initialize, parameter_shapes
from ghn_jax.hypernetworks.preparation import Preparation, PreparedGraphs
from ghn_jax.hypernetworks.tiling import TileKey
from ghn_jax.programs.cache import (
    ProgramCache,
    Selection,
    VjpPrograms,
    build_vjp,
    compile_frequent,
    compile_lowered,
    start_compiling,
)
from ghn_jax.programs.relocation import ProgramsOnDevice

PyTree = Any
Array = Any  # numpy or JAX
# Embeddings are padded to this many nodes per graph, so that decoders see one size for most
# batches.
_NUM_DECODED_NODES = 512


class Predictor:
    """A hypernetwork with its compiled programs.

    Args:
        model: The hypernetwork, or the configuration of one.
        num_compile_threads: How many programs compile at the same time.
        programs: Compiled programs, shared with predictors on other devices; None makes a new
            cache.
        nodes_at_once: How many nodes of each graph message passing visits together; the numbers are
            the same. None is 1 on CPUs, where more is not faster (`benchmarks/hypernetwork.py`),
            and 2 on accelerators, whose time follows the number of steps: 1.8 times fewer.
    """

    def __init__(
        self,
        model: Hypernetwork | GHNConfig,
        num_compile_threads: int = 2,
        programs: ProgramCache | ProgramsOnDevice | None = None,
        nodes_at_once: int | None = None,
    ) -> None:
        model = as_model(model)
        self.config = model.config
        self._nodes_at_once = nodes_at_once or (1 if jax.default_backend() == "cpu" else 2)
        self._network = model.for_programs(self._nodes_at_once)
        self._prepare = Preparation(self._network, self._nodes_at_once)
        self._decoders = self._network.create_decoders()
        self._programs = programs or ProgramCache(num_compile_threads)

    @property
    def num_compilations(self) -> int:
        """How many programs were compiled so far."""
        return self._programs.num_compilations

    def init(self, key: jax.Array) -> PyTree:
        """Draw the hypernetwork's parameters."""
        return initialize(self._network, key)["params"]

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
        return self._prepare(graphs, num_graphs)

    def embed_nodes(self, ghn_params: PyTree, prepared: PreparedGraphs) -> list[np.ndarray]:
        """Embed the nodes of the graphs: for each an array (N, D), in the order of its nodes."""
        batch = prepared.batch
        programs = self._programs.get(*self._embed_call(ghn_params, batch))
        embeddings, _ = programs.forward(ghn_params, batch)
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
        self._start_compiling(self._forward_calls(ghn_params, prepared))
        return self._predict(ghn_params, prepared)[0]

    def predict_with_pull_back(
        self, ghn_params: PyTree, prepared: PreparedGraphs
    ) -> tuple[list[list[np.ndarray]], Callable[[Sequence], PyTree]]:
        """Like `predict`, with a function from the gradients of the parameters to those of the GHN.

        Returns:
            The parameters, and `pull_back(grads)`, where `grads` holds for each graph arrays in the
            order of its tensors, or None to leave the graph out.
        """
        # Forward programs first: the backward ones are made from them.
        self._start_compiling(self._forward_calls(ghn_params, prepared))
        self._start_compiling(self._backward_calls(ghn_params, prepared))
        target_params, forward_state = self._predict(ghn_params, prepared)

        def pull_back(grads: Sequence) -> PyTree:
            return self._pull_back(ghn_params, prepared, forward_state, grads)

        return target_params, pull_back

    def warm_up(self, prepared: Iterable[PreparedGraphs], **selection: Unpack[Selection]) -> int:
        """Compile the most frequent programs of a sample of batches, in parallel threads.

        Args:
            prepared: The sample.
            **selection: `coverage`, `share` and `progress` of `compile_frequent`.

        Returns:
            How many programs that was.
        """
        ghn_params = parameter_shapes(self._network)["params"]
        calls = (call for one in prepared for call in self._backward_calls(ghn_params, one))
        return compile_frequent(self._programs, calls, **selection)

    def _start_compiling(self, calls):
        # Views from other devices take or make theirs on first use: what they started would be
        # compiled for the cache's device.
        if isinstance(self._programs, ProgramCache):
            start_compiling(self._programs, calls)

    def _forward_calls(self, ghn_params, prepared):
        """Of every forward program of a step, its key and what builds it."""
        embeddings = self._embeddings_shape(ghn_params, prepared.batch)
        yield self._embed_call(ghn_params, prepared.batch)
        for key, nodes in prepared.requests.items():
            yield self._decode_call(ghn_params, key, embeddings, nodes)

    def _backward_calls(self, ghn_params, prepared):
        """Of every backward program of a step, its key and what builds it."""
        embeddings = self._embeddings_shape(ghn_params, prepared.batch)
        yield self._embed_backward_call(ghn_params, prepared.batch)
        yield self._zeros_call(ghn_params, embeddings)
        for key, nodes in prepared.requests.items():
            yield self._decode_backward_call(ghn_params, key, embeddings, nodes)

    def _embeddings_shape(self, ghn_params, batch) -> jax.ShapeDtypeStruct:
        num_graphs, num_nodes = batch.primitive.shape
        shape = (num_graphs * max(_NUM_DECODED_NODES, num_nodes), self.config.hidden_size)
        return jax.ShapeDtypeStruct(shape, jax.tree.leaves(ghn_params)[0].dtype)

    def _predict(self, ghn_params, prepared):
        batch = prepared.batch
        programs = self._programs.get(*self._embed_call(ghn_params, batch))
        embeddings, embed_residuals = programs.forward(ghn_params, batch)
        outputs = {}
        for key, nodes in prepared.requests.items():
            programs = self._programs.get(*self._decode_call(ghn_params, key, embeddings, nodes))
            outputs[key] = programs.forward(ghn_params[self._decoder(key)], embeddings, nodes)
        target_params: list[list] = [[None] * num for num in prepared.num_tensors]
        for key, (tiles, _) in outputs.items():  # while the device decodes the next kinds
            tiles = np.asarray(tiles)
            for group in prepared.tensors[key]:
                for (graph, position), tensor in zip(group.places, group.cut(tiles), strict=True):
                    target_params[graph][position] = tensor
        return target_params, (embeddings, embed_residuals, outputs)

    def _pull_back(self, ghn_params, prepared, forward_state, grads):
        embeddings, embed_residuals, outputs = forward_state
        d_decoders, d_embeddings = self._zeros(ghn_params, embeddings)
        for key, nodes in prepared.requests.items():
            tiles, residuals = outputs[key]
            d_tiles = np.zeros(tiles.shape, tiles.dtype)
            for group in prepared.tensors[key]:
                group.add_gradients(d_tiles, grads)
            decoder = self._decoder(key)
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
        def build():
            like = ({name: ghn_params[name] for name in self._decoders}, embeddings)
            zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)  # noqa: E731
            return compile_lowered(jax.jit(zeros).lower())

        return ("zeros", embeddings.shape), build

    def _embed_call(self, ghn_params, batch):
        build = lambda: self._build_embed(ghn_params, batch)  # noqa: E731
        return ("embed", _batch_shape(batch)), build

    def _build_embed(self, ghn_params, batch) -> VjpPrograms:
        def embed(params, batch):
            nodes = self._network.apply({"params": params}, batch, method="embed_nodes")
            rows = nodes.reshape(-1, nodes.shape[-1])  # (B * N, D)
            missing = nodes.shape[0] * max(_NUM_DECODED_NODES - nodes.shape[1], 0)
            return jnp.pad(rows, ((0, missing), (0, 0)))

        return build_vjp(embed, (ghn_params, batch), 1)

    def _embed_backward_call(self, ghn_params, batch):
        def build():
            programs = self._programs.build_here(*self._embed_call(ghn_params, batch))
            return compile_lowered(programs.lower_backward())

        return ("embed backward", _batch_shape(batch)), build

    def _decode_call(self, ghn_params, key, embeddings, nodes):
        build = lambda: self._build_decode(ghn_params, key, embeddings, nodes)  # noqa: E731
        return ("decode", key, embeddings.shape, nodes.shape), build

    def _decode_backward_call(self, ghn_params, key, embeddings, nodes):
        def build():
            call = self._decode_call(ghn_params, key, embeddings, nodes)
            programs = self._programs.build_here(*call)
            # Sums over all of the decoder's parameters: a million elements for each kind of tile.
            lowered = programs.lower_backward(accumulates=True)
            return compile_lowered(lowered, has_large_fusions=True)

        return ("decode backward", key, embeddings.shape, nodes.shape), build

    def _build_decode(self, ghn_params, key, embeddings, nodes) -> VjpPrograms:
        decoder = self._decoder(key)

        def decode(params, embeddings, nodes):
            variables = {"params": {decoder: params}}
            return self._network.apply(variables, embeddings, {key: nodes}, method="decode")[key]

        return build_vjp(decode, (ghn_params[decoder], embeddings, nodes), 2)

    def _decoder(self, key: TileKey) -> str:
        return decoder_name(self._decoders, key)


def _batch_shape(batch: GraphBatch) -> tuple:
    return batch.primitive.shape + (() if batch.edges is None else batch.edges.shape)
