"""The order in which sequential message passing visits nodes, several at once where they allow it.

Nodes that no path joins do not hear of each other within a pass, so that they can be visited
together and the result is the same. A graph of N nodes then takes fewer steps than N: at least as
many as its longest path has nodes.
"""

import heapq

import numpy as np

from ghn_jax.graphs.arch_graph import ArchGraph


def schedule_nodes(graph: ArchGraph, nodes_at_once: int) -> np.ndarray:
    """Place nodes in steps of a fixed number of places.

    Each step takes of the nodes whose parents are done those that the longest paths start from.
    Places of a step that no node is ready for stay empty.

    Args:
        graph: N nodes. Where an edge leads from a later node to an earlier one, as in some official
            files, the order counts and each step gets one node.
        nodes_at_once: Places of a step.

    Returns:
        (N,) int32, the place of each node: step s has the places from s * `nodes_at_once` on.
    """
    if nodes_at_once == 1 or np.any(graph.senders >= graph.receivers):
        return np.arange(graph.num_nodes, dtype=np.int32) * nodes_at_once
    own = graph.distance == 1
    own_edges = zip(graph.senders[own].tolist(), graph.receivers[own].tolist(), strict=True)
    children: list[list[int]] = [[] for _ in range(graph.num_nodes)]
    num_waiting = np.bincount(graph.receivers[own], minlength=graph.num_nodes).tolist()
    for sender, receiver in own_edges:
        children[sender].append(receiver)
    height = [0] * graph.num_nodes  # edges of the longest path from the node
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
