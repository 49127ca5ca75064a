"""Compare graphs up to the order of their nodes."""

import networkx
import numpy as np

from ghn_jax.graphs import ArchGraph


def match_nodes(expected: networkx.DiGraph, found: networkx.DiGraph) -> dict[int, int]:
    """An isomorphism that keeps the attribute `key` of every node; fails if there is none."""
    keys = [sorted(str(key) for _, key in graph.nodes(data="key")) for graph in (expected, found)]
    assert keys[0] == keys[1]
    matcher = networkx.isomorphism.DiGraphMatcher(
        expected, found, node_match=lambda a, b: a["key"] == b["key"]
    )
    assert matcher.is_isomorphic(), "no isomorphism"
    return matcher.mapping


def assert_equal_graphs(expected: ArchGraph, found: ArchGraph) -> None:
    """Equal primitives, shapes, edges, distances and tensors, up to the order of nodes."""
    mapping = match_nodes(_with_keys(expected), _with_keys(found))
    order = [mapping[node] for node in range(expected.num_nodes)]
    distances = found.distance_matrix()[np.ix_(order, order)]
    np.testing.assert_array_equal(distances, expected.distance_matrix())


def _with_keys(graph: ArchGraph) -> networkx.DiGraph:
    tensors: dict[int, list] = {}
    for tensor in graph.tensors:
        tensors.setdefault(tensor.node, []).append((tensor.path, tensor.shape, tensor.role))
    result = graph.to_networkx()
    for node, attributes in result.nodes(data=True):
        shape = tuple(graph.shape[node].tolist())
        key = (attributes["primitive"], shape, sorted(tensors.get(node, [])))
        attributes["key"] = key
    return result
