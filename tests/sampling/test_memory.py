"""Architectures come and go: a stream of them holds no memory."""

import gc
import itertools
import tracemalloc

from ghn_jax.sampling import ArchitectureStream, SpaceConfig
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower


def test_a_thousand_architectures_leave_nothing_behind():
    # Small networks, since tracing every allocation makes Python five times slower.
    space = SpaceConfig(num_cells=(4, 5), max_steps=2)
    graphs = (build_graph(lower(a, 32, 10)) for a in ArchitectureStream(space, seed=0))
    num_nodes = [graph.num_nodes for graph in itertools.islice(graphs, 100)]
    tracemalloc.start()
    try:
        num_nodes += [graph.num_nodes for graph in itertools.islice(graphs, 900)]
        gc.collect()
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(num_nodes) == 1000 and min(num_nodes) > 10
    # What stays are a few configurations of blocks not met before; one graph takes as much.
    assert left < 200_000
    assert peak < 5_000_000
