"""Add reversed edges and self-loops, which graph convolutions expect."""

import jax.numpy as jnp
import jraph


def make_undirected(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Add the reverse of each edge, and an edge from each node to itself.

    Args:
        graph: N nodes and E edges without features.

    Returns:
        The tuple with 2 E + N edges. They are no longer sorted by graph, so that functions that ask
        which graph of a batch an edge belongs to do not work on it.
    """
    own = jnp.arange(graph.nodes.shape[0], dtype=graph.senders.dtype)
    return graph._replace(
        senders=jnp.concatenate([graph.senders, graph.receivers, own]),
        receivers=jnp.concatenate([graph.receivers, graph.senders, own]),
        n_edge=2 * graph.n_edge + graph.n_node,
    )
