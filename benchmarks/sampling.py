"""Measure how fast architectures are drawn, lowered, and turned into graphs with virtual edges.

    python benchmarks/sampling.py [--split train] [--num_architectures 2000]

The script prints the rate on one core, and the peak memory after a warm-up and at the end.
"""

import argparse
import resource
import time

from rich.progress import track

from ghn_jax.sampling import SPLITS, ArchitectureStream, SpaceConfig
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower


def peak_memory_mb() -> float:
    """Return the most memory that this process has used so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--split", default="train", choices=list(SPLITS), help="Split to draw from."
    )
    parser.add_argument("--num_architectures", type=int, default=2000, help="Number of networks.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the stream.")
    arguments = parser.parse_args()
    space = SpaceConfig(split=arguments.split)
    stream = ArchitectureStream(space, arguments.seed)
    warm = min(arguments.num_architectures, 100)
    for index in range(warm):
        build_graph(lower(stream[index], space.image_size, space.num_classes))
    memory, start = peak_memory_mb(), time.process_time()
    num_edges = 0
    for index in track(range(arguments.num_architectures), "drawing", transient=True):
        num_edges += len(build_graph(lower(stream[index], 32, 10)).distance)
    seconds = time.process_time() - start
    rate = arguments.num_architectures / seconds
    print(
        f"{arguments.split}: {rate:.0f} architectures per CPU second with graphs of"
        f" {num_edges / arguments.num_architectures:.0f} edges on average; peak memory"
        f" {memory:.0f} MB after {warm}, {peak_memory_mb():.0f} MB at the end"
    )


if __name__ == "__main__":
    main()
