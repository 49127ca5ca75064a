"""Predict the parameters of target networks, and pull their gradients back into the hypernetwork.

From graphs, this predicts every parameter tensor of every graph, in the order of `graph.tensors`
and with exactly the target's shapes. Architectures all differ, but compiled programs must not:
message passing is one program per padded number of nodes, and decoding is one program per kind of
tile and padded number of tiles. (A single program for both would have to be compiled again for
every combination of numbers of tiles.) A prediction is embed, decode, cut; the backward pass adds
up the gradients of the cut tensors, then runs the gradients of decode and embed.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.arrays import Array, PyTree
from ghn_jax.graphs import ArchGraph, GraphBatch
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.hypernetworks.cutting import Grads, create_cutting
from ghn_jax.hypernetworks.decoders import decoder_name
from ghn_jax.hypernetworks.model import Hypernetwork, as_model, initialize, parameter_shapes
from ghn_jax.hypernetworks.preparation import Preparation, PreparedGraphs, TensorGroup
from ghn_jax.hypernetworks.tiling import TileKey
from ghn_jax.programs.cache import ProgramCache
from ghn_jax.programs.relocation import ProgramsOnDevice
from ghn_jax.programs.table import Compilation, ProgramTable, Selection

# Embeddings are padded to at least this many nodes per graph, so that decoders see the same size in
# most batches.
_NUM_DECODED_NODES = 512


class _DecodeSignature(NamedTuple):
    """What the programs of a decoder depend on.

    Attributes:
        key: The kind of tile.
        num_nodes: Number of node embeddings, B * N.
        num_tiles: Number of tiles, G.
    """

    key: TileKey
    num_nodes: int
    num_tiles: int


class _Decoded(NamedTuple):
    """The tiles of one kind, (G, ...), and the residuals of decoding them."""

    tiles: jax.Array
    residuals: PyTree


class _Forward(NamedTuple):
    """What the backward pass needs from a prediction.

    Attributes:
        embeddings: (B * N, D) node embeddings.
        residuals: Residuals of the embedding.
        decoded: Tiles and residuals for each kind of tile.
    """

    embeddings: jax.Array
    residuals: PyTree
    decoded: dict[TileKey, _Decoded]


class Predictor:
    """A hypernetwork with its compiled programs.

    Args:
        model: The hypernetwork, or its configuration.
        num_compile_threads: Number of programs that compile at the same time.
        programs: The cache of programs, shared with predictors on other devices; None creates one.
        nodes_at_once: Number of nodes of each graph that message passing visits together, which
            does not change the predictions. None means 1 on CPUs, where more is not faster
            (`benchmarks/hypernetwork.py`), and 2 on accelerators, whose time depends on the number
            of steps: there are 1.8 times fewer.
        cutting: Where parameters are cut from tiles, "host" or "device"; None means the host on
            CPUs and the device on accelerators.
    """

    def __init__(
        self,
        model: Hypernetwork | GHNConfig,
        num_compile_threads: int = 2,
        programs: ProgramCache | ProgramsOnDevice | None = None,
        nodes_at_once: int | None = None,
        cutting: str | None = None,
    ) -> None:
        model = as_model(model)
        self.config = model.config
        self._nodes_at_once = nodes_at_once or (1 if jax.default_backend() == "cpu" else 2)
        self._network = model.for_programs(self._nodes_at_once)
        self._prepare = Preparation(self._network, self._nodes_at_once)
        self._decoders = self._prepare.decoders
        self._table = table = ProgramTable(programs, num_compile_threads)
        self._embed = table.declare_differentiable("embed", self._embed_rows)
        # Backward programs add to the gradients of all the decoder's parameters, a million elements
        # for each kind of tile.
        self._decode = table.declare_differentiable(
            "decode",
            self._decode_tiles,
            num_differentiated=2,
            accumulates=True,
            has_large_fusions=True,
        )
        self._zeros = table.declare("zeros", lambda _, *like: jax.tree.map(jnp.zeros_like, like))
        self._cutting = create_cutting(table, cutting)
        self._tile_shapes: dict[TileKey, tuple[int, ...]] = {}

    @property
    def num_compilations(self) -> int:
        """Number of programs compiled so far."""
        return self._table.num_compilations

    def init(self, key: jax.Array) -> PyTree:
        """Draw the hypernetwork's parameters."""
        return initialize(self._network, key)["params"]

    def prepare(self, graphs: Sequence[ArchGraph], num_graphs: int | None = None) -> PreparedGraphs:
        """Pad graphs and locate the source of every tensor, on the host and without JAX.

        Args:
            graphs: The graphs, at least one.
            num_graphs: Number of graphs to pad the batch to, B; None adds no graphs.

        Returns:
            The prepared graphs, which `predict` takes.

        Raises:
            ValueError: If `graphs` is empty or has more than `num_graphs` graphs.
        """
        return self._prepare(graphs, num_graphs)

    def embed_nodes(self, ghn_params: PyTree, prepared: PreparedGraphs) -> list[np.ndarray]:
        """Embed the nodes of graphs.

        Args:
            ghn_params: The hypernetwork's parameters.
            prepared: The graphs, from `prepare`.

        Returns:
            For each graph an (N, D) array, in the order of the graph's nodes.
        """
        batch = prepared.batch
        embeddings, _ = self._embed.forward(*_embed_call(ghn_params, batch))
        rows = np.asarray(embeddings)[: batch.primitive.size].reshape(*batch.primitive.shape, -1)
        return [rows[index, place] for index, place in enumerate(prepared.places)]

    def predict(self, ghn_params: PyTree, prepared: PreparedGraphs) -> list[list[Array]]:
        """Predict every parameter tensor of every graph.

        Args:
            ghn_params: The hypernetwork's parameters.
            prepared: The graphs, from `prepare`.

        Returns:
            For each graph, arrays with the order and shapes of its `tensors`; these are numpy
            arrays if parameters are cut on the host.
        """
        with jax.disable_jit(False):  # compiled programs do not run without
            self._table.start_compiling(self._forward_compilations(ghn_params, prepared))
            return self._predict(ghn_params, prepared)[0]

    def predict_with_pull_back(
        self, ghn_params: PyTree, prepared: PreparedGraphs
    ) -> tuple[list[list[Array]], Callable[[Grads], PyTree]]:
        """Predict like `predict`, and return a function that pulls gradients back.

        Args:
            ghn_params: The hypernetwork's parameters.
            prepared: The graphs, from `prepare`.

        Returns:
            The predicted parameters, and `pull_back(grads)`, which returns the gradients of the
            hypernetwork's parameters. For each graph, `grads` holds the gradients of its tensors in
            their order, or None to leave the graph out.
        """
        # Forward programs first: the backward ones are made from them.
        self._table.start_compiling(self._forward_compilations(ghn_params, prepared))
        self._table.start_compiling(self._backward_compilations(ghn_params, prepared))
        target_params, forward = self._predict(ghn_params, prepared)

        def pull_back(grads: Grads) -> PyTree:
            return self._pull_back(ghn_params, prepared, forward, grads)

        return target_params, pull_back

    def warm_up(self, prepared: Iterable[PreparedGraphs], **selection: Unpack[Selection]) -> int:
        """Compile the most frequent programs of a sample of batches, in parallel threads.

        Args:
            prepared: The sampled batches, from `prepare`.
            **selection: Which programs to compile, see `Selection`.

        Returns:
            The number of programs selected.
        """
        ghn_params = parameter_shapes(self._network)["params"]
        compilations = (self._warm_up_compilations(ghn_params, one) for one in prepared)
        return self._table.warm_up(itertools.chain.from_iterable(compilations), **selection)

    def _predict(
        self, ghn_params: PyTree, prepared: PreparedGraphs
    ) -> tuple[list[list[Array]], _Forward]:
        embeddings, residuals = self._embed.forward(*_embed_call(ghn_params, prepared.batch))
        decoded = {}
        for key, nodes in prepared.requests.items():
            call = self._decode_call(ghn_params, embeddings, key, nodes)
            decoded[key] = _Decoded(*self._decode.forward(*call))
        target_params: list[list] = [[None] * num for num in prepared.num_tensors]
        for key, (tiles, _) in decoded.items():  # while the device decodes the next ones
            for (graph, position), tensor in self._cutting.cut(tiles, prepared.tensors[key]):
                target_params[graph][position] = tensor
        return target_params, _Forward(embeddings, residuals, decoded)

    def _pull_back(
        self, ghn_params: PyTree, prepared: PreparedGraphs, forward: _Forward, grads: Grads
    ) -> PyTree:
        # New arrays, in which the gradients of decoders and embeddings are summed.
        d_decoders, d_embeddings = self._zeros(*self._zeros_call(ghn_params, forward.embeddings))
        for key, nodes in prepared.requests.items():
            tiles, residuals = forward.decoded[key]
            d_tiles = self._cutting.tile_gradients(tiles, prepared.tensors[key], grads)
            call = self._decode_call(ghn_params, forward.embeddings, key, nodes)
            decoder = decoder_name(self._decoders, key)
            totals = (d_decoders[decoder], d_embeddings)
            # This returns at once, and the next tiles are assembled while the device works.
            totals = self._decode.backward(*call, residuals, d_tiles, totals)
            d_decoders[decoder], d_embeddings = totals
        (d_params,) = self._embed.backward(
            *_embed_call(ghn_params, prepared.batch), forward.residuals, d_embeddings
        )
        # Decoders do not contribute to embeddings, and the other modules do not decode.
        return {**d_params, **d_decoders}

    def _embed_rows(self, _: tuple, ghn_params: PyTree, batch: GraphBatch) -> jax.Array:
        """Embed nodes as (B * N, D), with N at least `_NUM_DECODED_NODES`."""
        variables = {"params": ghn_params}
        nodes: Any = self._network.apply(variables, batch, method="embed_nodes")
        rows = nodes.reshape(-1, nodes.shape[-1])  # (B * N, D)
        missing = nodes.shape[0] * max(_NUM_DECODED_NODES - nodes.shape[1], 0)
        return jnp.pad(rows, ((0, missing), (0, 0)))

    def _decode_tiles(
        self, signature: _DecodeSignature, params: PyTree, embeddings: jax.Array, nodes: jax.Array
    ) -> jax.Array:
        """Decode (G, ...) tiles, one from each of G nodes."""
        key = signature.key
        variables = {"params": {decoder_name(self._decoders, key): params}}
        tiles: Any = self._network.apply(variables, embeddings, {key: nodes}, method="decode")
        return tiles[key]

    def _decode_call(
        self, ghn_params: PyTree, embeddings: Array, key: TileKey, nodes: np.ndarray
    ) -> tuple[_DecodeSignature, tuple]:
        """Return the signature and the arguments of decoding."""
        signature = _DecodeSignature(key, embeddings.shape[0], nodes.size)
        return signature, (ghn_params[decoder_name(self._decoders, key)], embeddings, nodes)

    def _zeros_call(self, ghn_params: PyTree, embeddings: Array) -> tuple[tuple, tuple]:
        """Return the signature and arguments of making zeros like the decoders and embeddings."""
        return embeddings.shape, ({name: ghn_params[name] for name in self._decoders}, embeddings)

    def _forward_compilations(
        self, ghn_params: PyTree, prepared: PreparedGraphs
    ) -> Iterator[Compilation]:
        """Yield every forward program of a step."""
        embeddings = self._embeddings_like(ghn_params, prepared.batch)
        yield self._embed.forward_compilation(*_embed_call(ghn_params, prepared.batch))
        for key, nodes in prepared.requests.items():
            call = self._decode_call(ghn_params, embeddings, key, nodes)
            yield self._decode.forward_compilation(*call)
        for tiles, groups in self._tiles_to_cut(ghn_params, prepared):
            yield from self._cutting.forward_compilations(tiles, groups)

    def _backward_compilations(
        self, ghn_params: PyTree, prepared: PreparedGraphs
    ) -> Iterator[Compilation]:
        """Yield every backward program of a step."""
        embeddings = self._embeddings_like(ghn_params, prepared.batch)
        yield self._embed.backward_compilation(*_embed_call(ghn_params, prepared.batch))
        yield self._zeros.compilation(*self._zeros_call(ghn_params, embeddings))
        for key, nodes in prepared.requests.items():
            call = self._decode_call(ghn_params, embeddings, key, nodes)
            yield self._decode.backward_compilation(*call)
        for tiles, groups in self._tiles_to_cut(ghn_params, prepared):
            yield from self._cutting.backward_compilations(tiles, groups)

    def _warm_up_compilations(
        self, ghn_params: PyTree, prepared: PreparedGraphs
    ) -> Iterator[Compilation]:
        """Yield backward programs, which build the GHN's forward ones, and those that cut."""
        yield from self._backward_compilations(ghn_params, prepared)
        for tiles, groups in self._tiles_to_cut(ghn_params, prepared):
            yield from self._cutting.forward_compilations(tiles, groups)

    def _tiles_to_cut(
        self, ghn_params: PyTree, prepared: PreparedGraphs
    ) -> Iterator[tuple[jax.ShapeDtypeStruct, list[TensorGroup]]]:
        """Yield each kind's tiles and the tensors cut from them, if programs do the cutting."""
        if self._cutting.has_programs:
            embeddings = self._embeddings_like(ghn_params, prepared.batch)
            for key, nodes in prepared.requests.items():
                call = self._decode_call(ghn_params, embeddings, key, nodes)
                yield self._tiles_like(*call), prepared.tensors[key]

    def _embeddings_like(self, ghn_params: PyTree, batch: GraphBatch) -> jax.ShapeDtypeStruct:
        num_graphs, num_nodes = batch.primitive.shape
        shape = (num_graphs * max(_NUM_DECODED_NODES, num_nodes), self.config.hidden_size)
        return jax.ShapeDtypeStruct(shape, jax.tree.leaves(ghn_params)[0].dtype)

    def _tiles_like(self, signature: _DecodeSignature, arguments: tuple) -> jax.ShapeDtypeStruct:
        """Return the shape of the tiles that a call decodes."""
        _, embeddings, _ = arguments
        shape = self._tile_shapes.get(signature.key)
        if shape is None:  # traced once per kind of tile, because it takes milliseconds
            decode = functools.partial(self._decode_tiles, signature)
            tiles = jax.eval_shape(decode, *arguments)
            shape = self._tile_shapes[signature.key] = tiles.shape[1:]
        return jax.ShapeDtypeStruct((signature.num_tiles, *shape), embeddings.dtype)


def _embed_call(ghn_params: PyTree, batch: GraphBatch) -> tuple[tuple, tuple]:
    """Return the signature and the arguments of embedding."""
    return _batch_shape(batch), (ghn_params, batch)


def _batch_shape(batch: GraphBatch) -> tuple:
    return batch.primitive.shape + (() if batch.edges is None else batch.edges.shape)
