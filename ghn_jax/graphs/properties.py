"""The numbers by which the papers describe the graphs of architectures."""

from typing import NamedTuple

import numpy as np

from ghn_jax.graphs.arch_graph import ArchGraph, shortest_paths

_LONGEST = 250  # the longest distance that graphs store


class GraphProperties(NamedTuple):
    """Properties of a graph without its virtual edges.

    Attributes:
        num_nodes: Number of nodes N.
        num_edges: Number of edges E.
        mean_degree: Mean number of edges at a node, in and out: 2 E / N.
        mean_path: Mean shortest-path length over all pairs that a path joins.
        depth: Number of edges on the longest path.
    """

    num_nodes: int
    num_edges: int
    mean_degree: float
    mean_path: float
    depth: int

    def __str__(self) -> str:
        return (
            f"{self.num_nodes} nodes, {self.num_edges} edges, mean degree {self.mean_degree:.2f},"
            f" mean path {self.mean_path:.1f}, depth {self.depth}"
        )


def graph_properties(graph: ArchGraph) -> GraphProperties:
    """Measure a graph.

    Args:
        graph: The graph of a network; virtual edges do not count.

    Returns:
        Its properties.
    """
    parents = find_parents(graph)
    distances = shortest_paths(parents, _LONGEST)
    num_edges = sum(map(len, parents))
    return GraphProperties(
        num_nodes=graph.num_nodes,
        num_edges=num_edges,
        mean_degree=2 * num_edges / graph.num_nodes,
        mean_path=float(distances[distances > 0].mean()) if num_edges else 0.0,
        depth=int(find_depths(parents).max()),
    )


def find_parents(graph: ArchGraph) -> list[tuple[int, ...]]:
    """List the parents of each node, which are the nodes with an edge to it."""
    parents: list[list[int]] = [[] for _ in range(graph.num_nodes)]
    own = graph.distance == 1
    for sender, receiver in zip(graph.senders[own], graph.receivers[own], strict=True):
        parents[receiver].append(int(sender))
    return [tuple(nodes) for nodes in parents]


def find_depths(parents: list[tuple[int, ...]]) -> np.ndarray:
    """Count the edges on the longest path to each node, (N,); parents come before children."""
    depths = np.zeros(len(parents), int)
    for node, sources in enumerate(parents):
        if sources:
            depths[node] = depths[list(sources)].max() + 1
    return depths
