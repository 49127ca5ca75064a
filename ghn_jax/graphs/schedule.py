"""The order in which sequential message passing visits nodes, several at once where possible.

Nodes that no path joins cannot influence each other within a pass, so visiting them together gives
the same result. A graph of N nodes then takes fewer than N steps, but at least as many as its
longest path has nodes.
"""

import heapq

import numpy as np

from ghn_jax.graphs.arch_graph import ArchGraph


def schedule_nodes(graph: ArchGraph, nodes_at_once: int) -> np.ndarray:
    """Assign nodes to steps with a fixed number of places.

    Among the nodes whose parents are done, each step takes those from which the longest paths
    start. If too few nodes are ready, places of a step stay empty.

    Args:
        graph: A graph of N nodes. If an edge leads from a later node to an earlier one, as in some
            official files, the given order is kept and each step gets one node.
        nodes_at_once: Number of places in each step.

    Returns:
        (N,) int32, the place of each node; the places of step s start at s * `nodes_at_once`.
    """
    if nodes_at_once == 1 or np.any(graph.senders >= graph.receivers):
        return np.arange(graph.num_nodes, dtype=np.int32) * nodes_at_once
    own = graph.distance == 1
    own_edges = zip(graph.senders[own].tolist(), graph.receivers[own].tolist(), strict=True)
    children: list[list[int]] = [[] for _ in range(graph.num_nodes)]
    num_waiting = np.bincount(graph.receivers[own], minlength=graph.num_nodes).tolist()
    for sender, receiver in own_edges:
        children[sender].append(receiver)
    height = [0] * graph.num_nodes  # number of edges on the longest path from the node
    for node in reversed(range(graph.num_nodes)):
        height[node] = max((1 + height[child] for child in children[node]), default=0)
    ready = [(-height[node], node) for node, num in enumerate(num_waiting) if num == 0]
    heapq.heapify(ready)
    places = np.zeros(graph.num_nodes, np.int32)
    step = 0
    while ready:
        visited = [heapq.heappop(ready)[1] for _ in range(min(nodes_at_once, len(ready)))]
        for offset, node in enumerate(visited):
            places[node] = step * nodes_at_once + offset
            for child in children[node]:
                num_waiting[child] -= 1
                if num_waiting[child] == 0:
                    heapq.heappush(ready, (-height[child], child))
        step += 1
    return places
