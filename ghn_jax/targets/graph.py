"""The graph of a plan: what a GHN reads of an architecture."""

from ghn_jax.graphs.arch_graph import MAX_VIRTUAL_DISTANCE, ArchGraph, graph_from_nodes
from ghn_jax.targets.plan import Plan


def build_graph(plan: Plan, max_distance: int = MAX_VIRTUAL_DISTANCE) -> ArchGraph:
    """Read the graph off a plan and add virtual edges.

    Args:
        plan: A lowered architecture.
        max_distance: Longest distance with an edge; 1 means the network's own edges only.

    Returns:
        The graph.
    """
    return graph_from_nodes(plan.nodes, plan.tensors, max_distance)
