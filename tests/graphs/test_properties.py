"""Properties of graphs, by hand and against networkx."""

import networkx
import numpy as np
import pytest
from architecture_samples import VARIANTS

from ghn_jax.graphs import graph_from_nodes
from ghn_jax.graphs.properties import graph_properties
from ghn_jax.graphs.schema import NO_SHAPE, TracedNode
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower


def test_by_hand():
    # input -> conv -> bn -> sum, input -> sum: paths 1, 2, 1, 1, 2, 1.
    nodes = [
        TracedNode("input", NO_SHAPE, ()),
        TracedNode("conv", (4, 3, 1, 1), (0,)),
        TracedNode("bn", (4, 1, 1, 1), (1,)),
        TracedNode("sum", NO_SHAPE, (2, 0)),
    ]
    properties = graph_properties(graph_from_nodes(nodes, ()))
    assert properties == (4, 4, 2.0, pytest.approx(8 / 6), 3)
    assert str(properties) == "4 nodes, 4 edges, mean degree 2.00, mean path 1.3, depth 3"


@pytest.mark.parametrize("max_distance", [50, 1])
def test_against_networkx(max_distance):
    graph = build_graph(lower(VARIANTS["stem 1"], 32, 10), max_distance)
    own = graph.to_networkx()
    lengths = [
        length
        for _, targets in networkx.all_pairs_shortest_path_length(own)
        for length in targets.values()
        if length
    ]
    properties = graph_properties(graph)
    assert properties.num_edges == own.number_of_edges()
    assert properties.mean_path == pytest.approx(np.mean(lengths))
    assert properties.depth == networkx.dag_longest_path_length(own)
    assert properties.mean_degree == pytest.approx(np.mean([d for _, d in own.degree]))
