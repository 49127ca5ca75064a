"""Edges in both directions and from each node to itself, as convolutions of graphs expect them."""

import jax.numpy as jnp
import jraph


def make_undirected(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Add to a tuple's edges the reversed ones and one from each node to itself.

    Args:
        graph: N nodes, E edges without features. What asks which edges belong to which graph of a
            batch does not work on the result, whose edges are no longer sorted by graphs.

    Returns:
        The tuple with 2 E + N edges.
    """
    own = jnp.arange(graph.nodes.shape[0], dtype=graph.senders.dtype)
    return graph._replace(
        senders=jnp.concatenate([graph.senders, graph.receivers, own]),
        receivers=jnp.concatenate([graph.receivers, graph.senders, own]),
        n_edge=2 * graph.n_edge + graph.n_node,
    )
