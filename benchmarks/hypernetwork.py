"""Time the hypernetwork alone: embedding nodes and decoding tiles, forward and with gradients.

    python benchmarks/hypernetwork.py [--num_nodes 256] [--bound_channels]

Four graphs of a GHN-2 with max shape (64, 64, 11, 11), each with the tensors of a typical
architecture. Measured on 2 cores without other load, JAX 0.10.2, N = 256: embedding 4 ms, with
gradients 17 ms; decoding 35 ms, with gradients 58 ms (140 ms of CPU). N = 1024: embedding 44 and
106 ms. Bounding half of the kernels to half of the tile's channels saves a sixth of decoding.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from ghn_jax.compilation import compile_lowered  # noqa: E402
from ghn_jax.graphs import PRIMITIVES, GraphBatch  # noqa: E402
from ghn_jax.graphs.arch_graph import shortest_paths  # noqa: E402
from ghn_jax.hypernetworks import Hypernetwork, TileKey, ghn2, initialize  # noqa: E402

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
    parser.add_argument("--num_nodes", type=int, default=256, help="Of each graph.")
    parser.add_argument("--bound_channels", action="store_true", help="Of half of the kernels.")
    arguments = parser.parse_args()
    num_nodes = arguments.num_nodes
    num_tensors = bound_half(NUM_TENSORS) if arguments.bound_channels else NUM_TENSORS
    config = ghn2()
    network = Hypernetwork(config)
    variables = initialize(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = GraphBatch(
        primitive=rng.integers(0, len(PRIMITIVES), (NUM_GRAPHS, num_nodes)).astype(np.int32),
        shape_index=rng.integers(0, 8, (NUM_GRAPHS, num_nodes, 4)).astype(np.int32),
        distance=np.stack([_random_distances(rng, num_nodes) for _ in range(NUM_GRAPHS)]),
        node_mask=np.ones((NUM_GRAPHS, num_nodes), bool),
    )
    requests = {
        key: rng.integers(0, NUM_GRAPHS * num_nodes, NUM_GRAPHS * count).astype(np.int32)
        for key, count in num_tensors.items()
    }

    def embed(variables):
        return network.apply(variables, batch, method="embed_nodes")

    def decode(variables, embeddings):
        return network.apply(variables, embeddings, requests, method="decode")

    embeddings = report("embed", embed, variables)
    report("embed and gradient", with_gradient(embed), variables)
    embeddings = embeddings.reshape(-1, config.hidden_size)
    report("decode", decode, variables, embeddings)
    report("decode and gradient", with_gradient(decode), variables, embeddings)


def bound_half(num_tensors):
    """Decode half of each kind of kernel in half of the tile's channels."""
    bounded = {}
    for key, count in num_tensors.items():
        half = count // 2 if key.kind == "kernel" else 0
        bounded[key] = count - half
        if half:
            bounded[key._replace(in_channels=32, out_channels=32)] = half
    return bounded


def with_gradient(fn):
    """Return a function that also pulls ones back through `fn`."""

    def call(*args):
        outputs, pull_back = jax.vjp(fn, *args)
        return outputs, pull_back(jax.tree.map(jnp.ones_like, outputs))

    return call


def report(name, fn, *args):
    """Compile, run ten times, print the fastest run's wall and CPU time, return the outputs."""
    start = time.perf_counter()
    program = compile_lowered(jax.jit(fn).lower(*args))
    compile_seconds = time.perf_counter() - start
    wall, cpu = [], []
    for _ in range(10):
        start, cpu_start = time.perf_counter(), time.process_time()
        outputs = jax.block_until_ready(program(*args))
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - cpu_start))
    times = f"{min(wall):6.1f} ms ({min(cpu):.1f} ms of CPU)"
    print(f"{name:20s} compile {compile_seconds:5.2f} s  run {times}")
    return outputs


def _random_distances(rng, num_nodes):
    # A chain with shortcuts: about the depth and degree of sampled architectures.
    parents = [
        tuple({node - 1, int(rng.integers(max(0, node - 8), node))}) if node else ()
        for node in range(num_nodes)
    ]
    return shortest_paths(parents, 50)


if __name__ == "__main__":
    main()
