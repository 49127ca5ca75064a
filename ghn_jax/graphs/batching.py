"""Batch graphs and pad them to a bounded set of sizes; this is where the host's numpy ends.

Graphs are passed around as `jraph.GraphsTuple`; see `ArchGraph`. A GHN reads B graphs as arrays
padded to the same number of nodes N, so that it can sweep all of them in parallel.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np


class GraphBatch(NamedTuple):
    """B graphs of at most N nodes each, as they enter a compiled program.

    Attributes:
        primitive: (B, N) int32, index into `PRIMITIVES`; 0 on padding.
        shape_index: (B, N, 4) int32, rows of the shape vocabulary.
        distance: (B, N, N) uint8 [receiver, sender]; 0 means no edge, and is found on padding.
        node_mask: (B, N) bool, False on padding, which comes last except for places left empty.
        edges: (B, E, 2) int32, sender and receiver of the networks' own edges, -1 on padding; None
            if message passing reads distances only.
    """

    primitive: np.ndarray
    shape_index: np.ndarray
    distance: np.ndarray
    node_mask: np.ndarray
    edges: np.ndarray | None = None

    def to_jraph(self, nodes: jax.Array) -> jraph.GraphsTuple:
        """Convert node states to a tuple for modules written for jraph.

        Args:
            nodes: (B, N, D) node states.

        Returns:
            One tuple of all graphs, with B * N nodes and one more, which the padding edges join to
            itself.

        Raises:
            ValueError: If the batch has no edges.
        """
        if self.edges is None:
            raise ValueError(
                "edges is missing, expected those of the networks: a module of message passing that"
                " reads them sets `needs_edges = True`"
            )
        num_graphs, num_nodes, size = nodes.shape
        offset = num_nodes * jnp.arange(num_graphs, dtype=jnp.int32).reshape(-1, 1, 1)
        edges = jnp.where(self.edges < 0, num_graphs * num_nodes, self.edges + offset)
        senders, receivers = edges.reshape(-1, 2).T
        return jraph.GraphsTuple(
            nodes=jnp.pad(nodes.reshape(-1, size), ((0, 1), (0, 0))),
            edges=None,
            senders=senders,
            receivers=receivers,
            n_node=jnp.array([num_nodes] * num_graphs + [1], jnp.int32),
            n_edge=jnp.array([edges.shape[1]] * num_graphs + [0], jnp.int32),
            globals=None,
        )

    def from_jraph(self, graph: jraph.GraphsTuple) -> jax.Array:
        """Return the (B, N, F) node states of a tuple made by `to_jraph`, whatever their width."""
        return graph.nodes[:-1].reshape(*self.node_mask.shape, -1)


def batch_graphs(
    graphs: Sequence[jraph.GraphsTuple],
    lookup_shapes: Callable[[np.ndarray], np.ndarray],
    num_graphs: int,
    num_nodes: int,
    places: Sequence[np.ndarray] | None = None,
    with_edges: bool = False,
) -> GraphBatch:
    """Pad graphs to B = `num_graphs` graphs of N = `num_nodes` nodes.

    Args:
        graphs: At most B graphs, each of at most N nodes, as `ArchGraph.graph` describes them.
        lookup_shapes: Maps (n, 4) parameter shapes to (n, 4) rows of the shape vocabulary.
        num_graphs: Number of graphs B in the batch.
        num_nodes: Number of nodes N in each graph of the batch.
        places: For each graph, the places of its nodes among the N; None keeps their order.
        with_edges: Whether the batch has `edges`, padded to N, 2 N, 4 N, ... rows.

    Returns:
        The batch; padding has no edges.

    Raises:
        ValueError: If there are more than B graphs, or a graph needs more than N places.
    """
    if len(graphs) > num_graphs:
        raise ValueError(
            f"graphs has {len(graphs)} graphs, expected at most num_graphs={num_graphs}"
        )
    batch = GraphBatch(
        primitive=np.zeros((num_graphs, num_nodes), np.int32),
        shape_index=np.zeros((num_graphs, num_nodes, 4), np.int32),
        distance=np.zeros((num_graphs, num_nodes, num_nodes), np.uint8),
        node_mask=np.zeros((num_graphs, num_nodes), bool),
    )
    for index, graph in enumerate(graphs):
        place = np.arange(int(graph.n_node.sum())) if places is None else places[index]
        size = int(place.max(initial=-1)) + 1
        if size > num_nodes:
            raise ValueError(
                f"graph {index} has {size} nodes, expected at most num_nodes={num_nodes}"
            )
        batch.primitive[index, place] = graph.nodes["primitive"]
        batch.shape_index[index, place] = lookup_shapes(graph.nodes["shape"])
        batch.distance[index, place[graph.receivers], place[graph.senders]] = graph.edges[
            "distance"
        ]
        batch.node_mask[index, place] = True
    return batch._replace(edges=_list_edges(batch.distance)) if with_edges else batch


def _list_edges(distance: np.ndarray) -> np.ndarray:
    """(B, N, N) distances -> (B, E, 2) edges of length 1."""
    num_graphs, num_nodes, _ = distance.shape
    is_own = distance == 1
    size, most = num_nodes, int(is_own.sum(axis=(1, 2)).max(initial=0))
    while size < most:
        size *= 2
    edges = np.full((num_graphs, size, 2), -1, np.int32)
    for index, of_graph in enumerate(is_own):
        receivers, senders = np.nonzero(of_graph)
        edges[index, : len(senders)] = np.stack([senders, receivers], axis=1)
    return edges
