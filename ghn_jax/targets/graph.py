"""The graph of a plan, from which a GHN predicts the plan's parameters."""

from ghn_jax.graphs.arch_graph import MAX_VIRTUAL_DISTANCE, ArchGraph, graph_from_nodes
from ghn_jax.targets.plan import Plan


def build_graph(plan: Plan, max_distance: int = MAX_VIRTUAL_DISTANCE) -> ArchGraph:
    """Build the graph of a plan, with virtual edges.

    Args:
        plan: The lowered architecture.
        max_distance: Longest distance that gets an edge; 1 keeps only the network's own edges.

    Returns:
        The graph of the plan's nodes and tensors.
    """
    return graph_from_nodes(plan.nodes, plan.tensors, max_distance)
