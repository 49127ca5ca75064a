"""The graph of a file and the graph our code builds are one: all 100 networks of the reference."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from reference_predictions import LOCAL, WHOLE, skip_for_want_of

from ghn_jax.deepnets1m.node_order import match_nodes, recover_node_order
from ghn_jax.deepnets1m.reader import DeepNets1M, meta_path
from ghn_jax.deepnets1m.writer import MAX_STORED_DISTANCE, DeepNets1MWriter, make_record
from ghn_jax.graphs import PRIMITIVES
from ghn_jax.sampling import SpaceConfig, sample_architecture
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

DATA = Path(__file__).parents[1] / "data"
SPLITS = {"train": 40, "val": 10, "test": 10, "wide": 10, "deep": 10, "dense": 10, "bnfree": 10}


def check_network(nets, index):
    """Primitives, parameter shapes, edges and distances are ours, in another order."""
    stored = nets[index]
    plan = lower(stored.architecture, 32, 10)
    built = build_graph(plan, MAX_STORED_DISTANCE)
    order = recover_node_order(stored, plan)
    assert sorted(order.rows) == sorted(order.plan_nodes) == list(range(built.num_nodes))
    # Edges and all distances, in the order of adj.
    distances = built.distance_matrix().T[np.ix_(order.plan_nodes, order.plan_nodes)]
    np.testing.assert_array_equal(stored.adjacency, distances)
    # The order of adj is topological.
    assert not np.tril(stored.adjacency).any()
    # Primitives as the rows say, 1x1 convolutions told from others.
    meta = json.loads(meta_path(nets.path).read_text())[nets.split]["meta"]["primitives_ext"]
    ours = [built.primitive[node] for node in order.plan_nodes]
    for row, node, primitive in zip(order.rows, order.plan_nodes, ours, strict=True):
        extended = meta[str(stored.nodes[row, 0])]
        is_pointwise = PRIMITIVES[primitive] == "conv" and tuple(built.shape[node, 2:]) == (1, 1)
        assert extended == ("conv_1x1" if is_pointwise else PRIMITIVES[primitive])
    # Parameter shapes: the file's are found by name, ours by place.
    graph = nets.graph(index, num_classes=10)
    np.testing.assert_array_equal(graph.shape[order.rows], built.shape[order.plan_nodes])
    row_of = dict(zip(order.plan_nodes.tolist(), order.rows.tolist(), strict=True))
    assert [tensor.node for tensor in graph.tensors] == [row_of[t.node] for t in built.tensors]
    return order


@pytest.mark.reference
@pytest.mark.parametrize("split", SPLITS)
def test_graphs_of_files_are_ours(split):
    if WHOLE is None:
        skip_for_want_of(f"the whole split {split}")
    nets = DeepNets1M(WHOLE, split)
    assert len(nets) == SPLITS[split]
    orders = [check_network(nets, index) for index in range(len(nets))]
    # The generator's permutation: rows of all but the simplest networks are elsewhere in adj.
    moved = [order for order in orders if np.any(order.rows != np.arange(len(order.rows)))]
    assert len(moved) >= len(nets) - 1
    for index, order in enumerate(orders):
        cells = nets[index].nodes[order.rows, 1]
        for cell in np.unique(cells):
            assert np.all(np.diff(order.rows[cells == cell]) > 0)


@pytest.mark.parametrize(
    ("folder", "split", "index"),
    [(DATA, "test", 0), (DATA, "test", 1), (DATA, "wide", 0), (DATA, "bnfree", 0)]
    + [(LOCAL, "val", 2), (LOCAL, "train", 8), (LOCAL, "train", 9)],
)
def test_graphs_in_the_repository_are_ours(folder, split, index):
    check_network(DeepNets1M(folder, split), index)


def test_files_written_here_are_in_order(tmp_path):
    with DeepNets1MWriter(tmp_path, "dense") as writer:
        for index in range(3):
            architecture = sample_architecture(SpaceConfig(split="dense"), 0, index)
            writer.write(make_record(architecture, "dense"))
    nets = DeepNets1M(tmp_path, "dense")
    for index in range(3):
        order = check_network(nets, index)
        np.testing.assert_array_equal(order.rows, np.arange(len(order.rows)))


def test_graphs_of_other_networks_are_refused():
    nets = DeepNets1M(DATA, "test")
    stored = nets[1]
    with pytest.raises(ValueError, match="adj has 88 nodes, expected the 156 of the plan"):
        recover_node_order(stored, lower(nets[0].architecture, 32, 10))
    # A shortcut that is not in the network.
    adjacency = stored.adjacency.copy()
    adjacency[0, 5] = 1
    with pytest.raises(ValueError, match="adj is the graph of another network: after"):
        plan = lower(stored.architecture, 32, 10)
        recover_node_order(stored._replace(adjacency=adjacency), plan)
    # Another operation of the same shape of graph.
    genotype = stored.architecture.genotype
    normal = (
        (("dil_conv_5x5", 0), *genotype.normal[1:]),
        (("sep_conv_3x3", 0), *genotype.normal[1:]),
    )
    for pairs, fits in zip(normal, (True, False), strict=True):
        other = dataclasses.replace(
            stored.architecture, genotype=dataclasses.replace(genotype, normal=pairs)
        )
        if fits:  # only the kernel's size differs, which adj and nodes do not hold
            recover_node_order(stored, lower(other, 32, 10))
        else:
            with pytest.raises(ValueError):
                recover_node_order(stored, lower(other, 32, 10))


def test_matching_by_hand():
    # 0 -> 1 -> 3, 0 -> 2 -> 3, and the same with the branches listed the other way round.
    parents = [(), (0,), (0,), (1, 2)]
    labels = ["input", "conv", "max_pool", "sum"]
    swapped = ["input", "max_pool", "conv", "sum"]
    np.testing.assert_array_equal(match_nodes(parents, labels, parents, swapped), [0, 2, 1, 3])
    # Branches of different lengths need no labels.
    longer, other = [(), (0,), (1,), (0,), (2, 3)], [(), (0,), (0,), (2,), (1, 3)]
    np.testing.assert_array_equal(match_nodes(longer, [0] * 5, other, [0] * 5), [0, 2, 3, 1, 4])
    with pytest.raises(ValueError, match="1 nodes share a place"):
        match_nodes(parents, ["input", "conv", "conv", "sum"], parents, labels)
    with pytest.raises(ValueError, match="places of nodes are in only one of the graphs"):
        match_nodes(parents, labels, [(), (0,), (1,), (1, 2)], labels)
