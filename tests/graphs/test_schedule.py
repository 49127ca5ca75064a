"""Which nodes message passing may visit together."""

import networkx
import numpy as np
import pytest
from architecture_samples import ONE_OP, VARIANTS

from ghn_jax import SpaceConfig, sample_architecture
from ghn_jax.graphs import ArchGraph, TracedNode, graph_from_nodes, schedule_nodes
from ghn_jax.graphs.schema import NO_SHAPE
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

SAMPLES = [ONE_OP["msa"], VARIANTS["no norm"]]
SAMPLES += [sample_architecture(SpaceConfig(), seed=0, index=index) for index in range(5)]
GRAPHS = [build_graph(lower(architecture, 32, 10)) for architecture in SAMPLES]


@pytest.mark.parametrize("nodes_at_once", [1, 2, 4])
@pytest.mark.parametrize("graph", GRAPHS)
def test_steps_hold_nodes_that_no_path_joins_after_all_they_hear_from(graph, nodes_at_once):
    places = schedule_nodes(graph, nodes_at_once)
    assert len(np.unique(places)) == graph.num_nodes and places.min() == 0
    step = places // nodes_at_once
    paths = networkx.transitive_closure(graph.to_networkx())
    assert all(step[sender] < step[receiver] for sender, receiver in paths.edges)


@pytest.mark.parametrize("graph", GRAPHS)
def test_with_places_enough_the_longest_path_decides(graph):
    longest = networkx.dag_longest_path_length(graph.to_networkx()) + 1
    assert schedule_nodes(graph, 64).max() // 64 + 1 == longest
    assert longest <= schedule_nodes(graph, 2).max() // 2 + 1 < 0.8 * graph.num_nodes


def test_one_node_at_once_keeps_the_order():
    np.testing.assert_array_equal(schedule_nodes(GRAPHS[0], 1), np.arange(GRAPHS[0].num_nodes))


def test_long_paths_go_first():
    # 0 -> 1, 2, 3 and 3 -> 4 -> 5: the path behind node 3 decides, 1 and 2 fit beside it.
    parents = [(), (0,), (0,), (0,), (3,), (4,)]
    nodes = [TracedNode("sum", NO_SHAPE, of_node) for of_node in parents]
    places = schedule_nodes(graph_from_nodes(nodes, ()), 2)
    np.testing.assert_array_equal(places, [0, 3, 5, 2, 4, 6])


def test_edges_to_earlier_nodes_keep_the_order():
    graph = ArchGraph.from_arrays(
        primitive=np.zeros(3, np.int32),
        shape=np.zeros((3, 4), np.int32),
        senders=np.array([2], np.int32),
        receivers=np.array([1], np.int32),
        distance=np.array([1], np.int32),
        tensors=(),
    )
    np.testing.assert_array_equal(schedule_nodes(graph, 4), [0, 4, 8])
