"""The graph of a target network: nodes are operations, edges carry shortest-path distances.

In: nodes and their parents, from a plan, a trace or a file. Out: an `ArchGraph`, numpy on the host.
Virtual edges join every ordered pair of nodes 2 to 50 steps apart (GHN-2, eq. 4;
docs/method.md, 'Graph').
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jraph
import networkx
import numpy as np

from ghn_jax.graphs.primitives import PRIMITIVE_INDEX, PRIMITIVES
from ghn_jax.graphs.schema import ParameterTensor, TracedNode

MAX_VIRTUAL_DISTANCE = 50


@dataclasses.dataclass(frozen=True, eq=False)
class ArchGraph:
    """The graph a GHN reads: N nodes in topological order, E edges, and the network's parameters.

    Attributes:
        graph: A single graph of numpy arrays. Its nodes have "primitive" (N,) int32, index into
            `PRIMITIVES`, and "shape" (N, 4) int32, (out, in, height, width) of the node's
            parameter, zeros if it has none. Its edges have "distance" (E,) int32, 1 for the
            network's own edges and 2..50 for virtual edges.
        tensors: Every parameter tensor of the network, with the index of its node.
    """

    graph: jraph.GraphsTuple
    tensors: tuple[ParameterTensor, ...]

    @classmethod
    def from_arrays(
        cls,
        primitive: np.ndarray,
        shape: np.ndarray,
        senders: np.ndarray,
        receivers: np.ndarray,
        distance: np.ndarray,
        tensors: Sequence[ParameterTensor] = (),
    ) -> ArchGraph:
        """Make a graph from int32 arrays of the shapes listed in the class's docstring."""
        graph = jraph.GraphsTuple(
            nodes={"primitive": primitive, "shape": shape},
            edges={"distance": distance},
            senders=senders,
            receivers=receivers,
            n_node=np.array([len(primitive)], np.int32),
            n_edge=np.array([len(distance)], np.int32),
            globals=None,
        )
        return cls(graph, tuple(tensors))

    @property
    def primitive(self) -> np.ndarray:
        """(N,) int32, index into `PRIMITIVES`."""
        return np.asarray(self.graph.nodes["primitive"])

    @property
    def shape(self) -> np.ndarray:
        """(N, 4) int32, (out, in, height, width) of each node's parameter; zeros if none."""
        return np.asarray(self.graph.nodes["shape"])

    @property
    def senders(self) -> np.ndarray:
        """(E,) int32, the node where each edge starts."""
        return np.asarray(self.graph.senders)

    @property
    def receivers(self) -> np.ndarray:
        """(E,) int32, the node where each edge ends."""
        return np.asarray(self.graph.receivers)

    @property
    def distance(self) -> np.ndarray:
        """(E,) int32, 1 for the network's own edges, 2..50 for virtual edges."""
        return np.asarray(self.graph.edges["distance"])

    @property
    def num_nodes(self) -> int:
        """The number of nodes N."""
        return len(self.primitive)

    def distance_matrix(self) -> np.ndarray:
        """Return the distances as (N, N) uint8 [receiver, sender], 0 where there is no edge."""
        matrix = np.zeros((self.num_nodes, self.num_nodes), np.uint8)
        matrix[self.receivers, self.senders] = self.distance
        return matrix

    def to_networkx(self) -> networkx.DiGraph:
        """Return the network's own edges as a networkx graph; nodes have a `primitive` name."""
        graph = networkx.DiGraph()
        for node, primitive in enumerate(self.primitive):
            graph.add_node(node, primitive=PRIMITIVES[primitive])
        own = self.distance == 1
        graph.add_edges_from(
            zip(self.senders[own].tolist(), self.receivers[own].tolist(), strict=True)
        )
        return graph


def graph_from_nodes(
    nodes: Sequence[TracedNode],
    tensors: Sequence[ParameterTensor],
    max_distance: int = MAX_VIRTUAL_DISTANCE,
) -> ArchGraph:
    """Build a graph from nodes in topological order and their parents.

    Args:
        nodes: Primitive, parameter shape and parents of each node; parents come earlier.
        tensors: Parameter tensors that refer to the nodes.
        max_distance: Longest distance that an edge spans.

    Returns:
        The graph.

    Raises:
        ValueError: If a parent does not come before its child, or `max_distance` is not in 1..250.
    """
    if not 1 <= max_distance <= 250:
        raise ValueError(f"max_distance is {max_distance}, expected 1 (no virtual edges) to 250")
    distances = shortest_paths([node.parents for node in nodes], max_distance)
    receivers, senders = np.nonzero(distances)
    return ArchGraph.from_arrays(
        primitive=np.array([PRIMITIVE_INDEX[node.primitive] for node in nodes], np.int32),
        shape=np.array([node.shape for node in nodes], np.int32),
        senders=senders.astype(np.int32),
        receivers=receivers.astype(np.int32),
        distance=distances[receivers, senders].astype(np.int32),
        tensors=tensors,
    )


def shortest_paths(parents: Sequence[tuple[int, ...]], max_distance: int) -> np.ndarray:
    """Compute the shortest-path distances between all nodes of a directed acyclic graph.

    Each node's row follows from its parents' rows: the distance from u to v is one more than the
    smallest distance from u to a parent of v.

    Args:
        parents: For each node in topological order, the nodes with an edge to it.
        max_distance: Longest distance to keep; longer ones become 0.

    Returns:
        (N, N) uint8 [receiver, sender], 0 where there is no path.

    Raises:
        ValueError: If a parent does not come before its child.
    """
    num_nodes = len(parents)
    unreachable = np.uint8(255)
    distances = np.full((num_nodes, num_nodes), unreachable)
    limit = np.uint8(max_distance)
    for node, sources in enumerate(parents):
        if sources and max(sources) >= node:
            raise ValueError(
                f"node {node} has parent {max(sources)}, expected nodes in topological order:"
                " parents first"
            )
        # A node is at distance 0 from itself, so a parent's row also accounts for the edge from the
        # parent.
        row = distances[node]
        for source in sources:
            np.minimum(row[:node], distances[source, :node], out=row[:node])
        row[row >= limit] = unreachable
        np.add(row, 1, out=row, where=row < limit)
        row[node] = 0
    distances[distances == unreachable] = 0
    return distances
