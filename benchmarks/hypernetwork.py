"""Time the hypernetwork alone: embedding nodes and decoding tiles, forward and with gradients.

    python benchmarks/hypernetwork.py [--num_nodes 50 100 250 500 1000 2000 3000]

The script runs a GHN-2 with max shape (64, 64, 11, 11). It embeds four random graphs, each a chain
with shortcuts, padded as in training; then four sampled architectures of each of several splits,
visiting one node at a time or several that no path joins; and it decodes the tensors of four
typical architectures. It prints the fastest of ten runs.
"""

import argparse
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import ghn_jax
from ghn_jax.arrays import Array, PyTree
from ghn_jax.graphs import PRIMITIVES, GraphBatch
from ghn_jax.graphs.arch_graph import shortest_paths
from ghn_jax.hypernetworks import GHNConfig, Hypernetwork, TileKey, ghn2, initialize
from ghn_jax.hypernetworks.preparation import Preparation, padded_num_nodes
from ghn_jax.programs.cache import compile_lowered, keep_freed_memory
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

NUM_GRAPHS = 4
NUM_TENSORS = {
    TileKey("kernel", 1, 1): 80,
    TileKey("kernel", 3, 3): 5,
    TileKey("kernel", 5, 5): 3,
    TileKey("kernel", 7, 7): 2,
    TileKey("depthwise", 3, 3): 10,
    TileKey("depthwise", 5, 5): 10,
    TileKey("vector"): 60,
    TileKey("classifier_kernel"): 1,
    TileKey("classifier_bias"): 1,
}


def main() -> None:
    """Compile and time the programs on random graphs."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = (50, 100, 250, 500, 1000, 2000, 3000)
    parser.add_argument("--num_nodes", type=int, nargs="+", default=sizes, help="Nodes per graph.")
    parser.add_argument(
        "--nodes_at_once", type=int, nargs="+", default=(1, 2, 4), help="Nodes visited together."
    )
    parser.add_argument(
        "--splits", nargs="+", default=("train", "wide", "deep"), help="Splits to sample."
    )
    parser.add_argument(
        "--bound_channels", action="store_true", help="Bound half of the kernels' channels."
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    config = ghn2()
    network = Hypernetwork(config, reverse_only=True)
    variables = initialize(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    table = Table(title=f"{os.cpu_count()} cores, JAX {jax.__version__}, {NUM_GRAPHS} graphs, ms")
    for column in ("nodes", "padded", "forward", "with gradient", "gradient per node", "compile s"):
        table.add_column(column, justify="right")
    for num_nodes in arguments.num_nodes:
        batch = random_batch(rng, num_nodes)

        forward, both, compile_seconds = time_embedding(network, variables, batch)
        padded = batch.primitive.shape[1]
        cells = (f"{forward:.1f}", f"{both:.1f}", f"{both / num_nodes:.3f}")
        table.add_row(str(num_nodes), str(padded), *cells, f"{compile_seconds:.1f}")
    console = Console()
    console.print(table)
    console.print(time_nodes_at_once(arguments, config, variables))

    num_tensors = bound_half(NUM_TENSORS) if arguments.bound_channels else NUM_TENSORS
    embeddings = rng.standard_normal((2048, config.hidden_size), dtype=np.float32)
    requests = {
        key: rng.integers(0, len(embeddings), NUM_GRAPHS * count).astype(np.int32)
        for key, count in num_tensors.items()
    }

    def decode(variables: PyTree, embeddings: Array) -> PyTree:
        return network.apply(variables, embeddings, requests, method="decode")

    _, forward, _ = timed(decode, variables, embeddings)
    _, both, _ = timed(with_gradient(decode), variables, embeddings)
    console.print(f"decoding all tiles: {forward:.1f} ms, with gradient {both:.1f} ms")


def time_embedding(
    network: Hypernetwork, variables: PyTree, batch: GraphBatch
) -> tuple[float, float, float]:
    """Return milliseconds forward and with gradient, and the latter's seconds of compilation."""

    def embed(variables: PyTree, batch: GraphBatch) -> PyTree:
        return network.apply(variables, batch, method="embed_nodes")

    def embed_with_gradient(variables: PyTree, batch: GraphBatch) -> tuple:
        return with_gradient(lambda variables: embed(variables, batch))(variables)

    _, forward, _ = timed(embed, variables, batch)
    _, both, compile_seconds = timed(embed_with_gradient, variables, batch)
    return forward, both, compile_seconds


def time_nodes_at_once(
    arguments: argparse.Namespace, config: GHNConfig, variables: PyTree
) -> Table:
    """Time sampled architectures, by the number of nodes that are visited together."""
    table = Table(title=f"{NUM_GRAPHS} sampled architectures of a split, ms")
    columns = ("split", "nodes at once", "steps", "padded", "forward", "with gradient")
    for column in columns:
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in arguments.splits:
        space = ghn_jax.SpaceConfig(split=split)
        plans = [
            lower(ghn_jax.sample_architecture(space, seed=0, index=index), 32, 10)
            for index in range(NUM_GRAPHS)
        ]
        graphs = [build_graph(plan) for plan in plans]
        for nodes_at_once in arguments.nodes_at_once:
            network = Hypernetwork(config, nodes_at_once=nodes_at_once, reverse_only=True)
            prepared = Preparation(network, nodes_at_once)(graphs)
            forward, both, _ = time_embedding(network, variables, prepared.batch)
            steps = 1 + max(int(place.max()) // nodes_at_once for place in prepared.places)
            padded = prepared.batch.primitive.shape[1]
            cells = (nodes_at_once, steps, padded, f"{forward:.1f}", f"{both:.1f}")
            table.add_row(split, *map(str, cells))
    return table


def random_batch(rng: np.random.Generator, num_nodes: int) -> GraphBatch:
    """Draw graphs of random primitives, each a chain with shortcuts."""
    padded = padded_num_nodes(num_nodes)
    distance = np.zeros((NUM_GRAPHS, padded, padded), np.uint8)
    distance[:, :num_nodes, :num_nodes] = [
        _random_distances(rng, num_nodes) for _ in range(NUM_GRAPHS)
    ]
    primitive = rng.integers(0, len(PRIMITIVES), (NUM_GRAPHS, padded)).astype(np.int32)
    shape_index = rng.integers(0, 8, (NUM_GRAPHS, padded, 4)).astype(np.int32)
    node_mask = np.broadcast_to(np.arange(padded) < num_nodes, primitive.shape)
    return GraphBatch(primitive, shape_index, distance, node_mask)


def bound_half(num_tensors: dict[TileKey, int]) -> dict[TileKey, int]:
    """Request half of each kind of kernel with only half of the tile's channels."""
    bounded = {}
    for key, count in num_tensors.items():
        half = count // 2 if key.kind == "kernel" else 0
        bounded[key] = count - half
        if half:
            bounded[key._replace(in_channels=32, out_channels=32)] = half
    return bounded


def with_gradient(fn: Callable) -> Callable:
    """Return a function that also pulls ones back through `fn`."""

    def call(*args: PyTree) -> tuple:
        outputs, pull_back = jax.vjp(fn, *args)
        return outputs, pull_back(jax.tree.map(jnp.ones_like, outputs))

    return call


def timed(fn: Callable, *args: PyTree) -> tuple[PyTree, float, float]:
    """Compile, run ten times; return outputs, fastest milliseconds and seconds of compilation."""
    start = time.perf_counter()
    program = compile_lowered(jax.jit(fn).lower(*args))
    compile_seconds = time.perf_counter() - start
    milliseconds = []
    for _ in range(10):
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(*args))
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return outputs, min(milliseconds), compile_seconds


def _random_distances(rng: np.random.Generator, num_nodes: int) -> np.ndarray:
    # A chain with shortcuts, about as deep and as densely connected as sampled architectures.
    parents = [
        tuple({node - 1, int(rng.integers(max(0, node - 8), node))}) if node else ()
        for node in range(num_nodes)
    ]
    return shortest_paths(parents, 50)


if __name__ == "__main__":
    main()
