"""Graphs: one drawn by hand, distances against networkx, every kind of network, batching."""

import networkx
import numpy as np
import pytest
from architecture_samples import ONE_OP, VARIANTS

from ghn_jax.architectures import VIT, Architecture, Genotype, ResNet
from ghn_jax.graphs import PRIMITIVES, batch_graphs, graph_from_nodes
from ghn_jax.graphs.schema import NO_SHAPE, TracedNode
from ghn_jax.targets.blocks import Sum
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

SAMPLES = {**ONE_OP, **VARIANTS, "vit": VIT, "resnet": ResNet()}


def test_a_graph_drawn_by_hand():
    # input -> conv -> bn -> sum, input -> sum
    nodes = [
        TracedNode("input", NO_SHAPE, ()),
        TracedNode("conv", (4, 3, 1, 1), (0,)),
        TracedNode("bn", (4, 1, 1, 1), (1,)),
        TracedNode("sum", NO_SHAPE, (2, 0)),
    ]
    graph = graph_from_nodes(nodes, ())
    assert [PRIMITIVES[p] for p in graph.primitive] == ["input", "conv", "bn", "sum"]
    expected = [[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 0], [1, 2, 1, 0]]
    np.testing.assert_array_equal(graph.distance_matrix(), expected)
    own = graph_from_nodes(nodes, (), max_distance=1)
    assert sorted(zip(own.senders.tolist(), own.receivers.tolist(), strict=True)) == [
        (0, 1),
        (0, 3),
        (1, 2),
        (2, 3),
    ]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("max_distance", [50, 3])
def test_distances_equal_networkx(name, max_distance):
    graph = build_graph(lower(SAMPLES[name], 32, 10), max_distance)
    lengths = networkx.all_pairs_shortest_path_length(graph.to_networkx(), cutoff=max_distance)
    expected = np.zeros((graph.num_nodes, graph.num_nodes), int)
    for sender, targets in lengths:
        for receiver, length in targets.items():
            expected[receiver, sender] = length
    np.testing.assert_array_equal(graph.distance_matrix(), expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_structure(name):
    plan = lower(SAMPLES[name], 32, 10)
    graph = build_graph(plan)
    own = graph.to_networkx()
    last = graph.num_nodes - 1
    assert networkx.is_directed_acyclic_graph(own)
    assert len(networkx.ancestors(own, last)) == last, "every node reaches the last one"
    unreachable = set(own) - networkx.descendants(own, 0) - {0}
    assert {PRIMITIVES[graph.primitive[node]] for node in unreachable} <= {"pos_enc"}
    for node in own:
        if own.nodes[node]["primitive"] in ("sum", "concat"):
            assert own.in_degree(node) >= 2
    # Each tensor knows its node, and each node that holds parameters its tensors.
    holders = {tensor.node for tensor in graph.tensors}
    learned = ("conv", "sep_conv", "dil_conv", "bias", "bn", "ln", "pos_enc")
    assert holders == {n for n in own if own.nodes[n]["primitive"] in learned}
    for tensor in graph.tensors:
        if tensor.role in ("kernel", "depthwise") and len(tensor.shape) == 4:
            height, width, channels_in, channels_out = tensor.shape
            np.testing.assert_array_equal(
                graph.shape[tensor.node], (channels_out, channels_in, height, width)
            )


def test_sum_of_the_same_state_is_no_node():
    # A sampled step reads two different states; a listed one may add a state to itself.
    twice = (("skip_connect", 0), ("skip_connect", 0))
    genotype = Genotype(twice, (2,), (("skip_connect", 1), ("conv_1x1", 1)), (2,))
    plan = lower(Architecture(genotype, num_cells=2, channels=8), 32, 10)
    (first, second) = [call for call in plan.calls if isinstance(call.block, Sum)]
    assert len(set(first.inputs)) == 1 and len(set(second.inputs)) == 2
    graph = build_graph(plan)
    assert [PRIMITIVES[p] for p in graph.primitive].count("sum") == 1


def test_batch_pads_with_what_has_no_edges():
    graphs = [build_graph(lower(VARIANTS[name], 32, 10)) for name in ("stem 1", "no norm")]
    tuples = [graph.graph for graph in graphs]
    batch = batch_graphs(tuples, lambda shapes: shapes + 7, num_graphs=3, num_nodes=256)
    for index, graph in enumerate(graphs):
        size = graph.num_nodes
        np.testing.assert_array_equal(batch.primitive[index, :size], graph.primitive)
        np.testing.assert_array_equal(batch.distance[index, :size, :size], graph.distance_matrix())
        assert batch.distance[index, size:].sum() == batch.distance[index, :, size:].sum() == 0
        np.testing.assert_array_equal(batch.shape_index[index, :size], graph.shape + 7)
        assert batch.node_mask[index].sum() == size
    assert not batch.node_mask[2].any()


def test_bad_arguments():
    graph = build_graph(lower(VARIANTS["stem 1"], 32, 10))
    tuples = [graph.graph] * 2
    with pytest.raises(ValueError, match="2 graphs, expected at most num_graphs=1"):
        batch_graphs(tuples, lambda s: s, 1, 256)
    with pytest.raises(ValueError, match="expected at most num_nodes=16"):
        batch_graphs(tuples, lambda s: s, 2, 16)
    with pytest.raises(ValueError, match="max_distance is 0, expected 1"):
        build_graph(lower(VARIANTS["stem 1"], 32, 10), 0)
    with pytest.raises(
        ValueError, match="node 0 has parent 1, expected nodes in topological order"
    ):
        nodes = [TracedNode("conv", NO_SHAPE, (1,)), TracedNode("input", NO_SHAPE, ())]
        graph_from_nodes(nodes, ())
