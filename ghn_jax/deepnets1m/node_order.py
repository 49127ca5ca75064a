"""Undo the permutation between the rows of `nodes` and those of `adj` in DeepNets-1M files.

The original's generator numbers nodes in a topological order in which cells interleave, and writes
`adj` in that order; but it collects `nodes` cell by cell. Both lists keep the order within a cell,
so `adj` is an interleaving of the cells' lists of rows. The file does not say which one, but it
follows from the network, whose graph must come out.

In: a network as a file holds it, and the plan of the same architecture. Out: for every row of
`adj`, its row of `nodes` and its node in the plan. Training and evaluation do not need it, since
they read a file's graph as the original does; it shows that the two graphs are the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ghn_jax.deepnets1m.parameter_names import node_names
from ghn_jax.deepnets1m.reader import StoredArchitecture
from ghn_jax.targets.plan import Plan


class NodeOrder(NamedTuple):
    """What each of the N rows of `adj` stands for.

    Attributes:
        rows: (N,) int, the row of `nodes` that describes the same node.
        plan_nodes: (N,) int, the same node's index in the plan.
    """

    rows: np.ndarray
    plan_nodes: np.ndarray


def recover_node_order(stored: StoredArchitecture, plan: Plan) -> NodeOrder:
    """Find which row of `nodes`, and which node of a plan, each row of `adj` stands for.

    Nodes are assigned to the rows of `adj` one by one, parents first. A node fits a row if it has
    the same parents, is the next one that its cell lists, and has the same place in the whole
    graph, which colour refinement determines in advance. If several nodes fit, all are tried.

    Args:
        stored: a network read from a file.
        plan: the plan of the same architecture.

    Returns:
        The order.

    Raises:
        ValueError: if there is no such order, because the two graphs differ.
    """
    own = stored.adjacency == 1
    file_parents = [tuple(np.flatnonzero(own[:, node]).tolist()) for node in range(len(own))]
    plan_parents = [tuple(sorted(node.parents)) for node in plan.nodes]
    if len(file_parents) != len(plan_parents):
        raise ValueError(
            f"adj has {len(file_parents)} nodes, expected the {len(plan_parents)} of the plan"
        )
    search = _Search(stored, plan, file_parents, plan_parents)
    if not search.run():
        raise ValueError(
            f"adj is the graph of another network: after {search.furthest} of its"
            f" {len(file_parents)} nodes, no node of the plan fits the next"
        )
    return NodeOrder(np.array(search.rows), np.array(search.plan_nodes))


class _Search:
    """Searches depth-first over the rows of `adj`; `rows` and `plan_nodes` hold the assignments."""

    def __init__(
        self,
        stored: StoredArchitecture,
        plan: Plan,
        file_parents: Sequence[tuple[int, ...]],
        plan_parents: Sequence[tuple[int, ...]],
    ) -> None:
        self.rows: list[int] = []
        self.plan_nodes: list[int] = []
        self.furthest = 0
        self._taken: list[int] = []  # the cell of each of `rows`
        self._parents = file_parents
        colors = _color_nodes(file_parents, plan_parents)
        self._queues: dict[int, list[int]] = {}
        for row, cell in enumerate(stored.nodes[:, 1].tolist()):
            self._queues.setdefault(cell, []).append(row)
        self._next = dict.fromkeys(self._queues, 0)
        # What a row of `nodes` says: the primitive and, if the node has parameters, cell and name.
        has_tensors = {tensor.node for tensor in plan.tensors}
        named = {
            (name.cell, name.name)
            for node, name in enumerate(node_names(plan))
            if node in has_tensors
        }
        self._labels = [
            (primitive, (cell, name) if (cell, name) in named else None)
            for primitive, cell, name in zip(
                stored.primitives, stored.nodes[:, 1].tolist(), stored.names, strict=True
            )
        ]
        self._file_colors = colors[: len(file_parents)]
        # The plan's nodes, grouped by what must agree: colour, label and parents.
        self._candidates: dict[tuple, list[int]] = {}
        for node, name in enumerate(node_names(plan)):
            label = (plan.nodes[node].primitive, tuple(name) if node in has_tensors else None)
            key = (colors[len(file_parents) + node], label, plan_parents[node])
            self._candidates.setdefault(key, []).append(node)

    def run(self) -> bool:
        choices = [self._choices()]
        while choices:
            if len(self.rows) == len(choices):  # undo: try another choice for this row
                self._next[self._taken.pop()] -= 1
                self.rows.pop()
                self.plan_nodes.pop()
            choice = next(choices[-1], None)
            if choice is None:
                choices.pop()
                continue
            cell, row, node = choice
            self._next[cell] += 1
            self._taken.append(cell)
            self.rows.append(row)
            self.plan_nodes.append(node)
            self.furthest = max(self.furthest, len(self.rows))
            if len(self.rows) == len(self._parents):
                return True
            choices.append(self._choices())
        return False

    def _choices(self) -> Iterator[tuple[int, int, int]]:
        index = len(self.rows)
        color = self._file_colors[index]
        parents = tuple(sorted(self.plan_nodes[parent] for parent in self._parents[index]))
        used = set(self.plan_nodes)
        for cell, queue in self._queues.items():
            if self._next[cell] == len(queue):
                continue
            row = queue[self._next[cell]]
            for node in self._candidates.get((color, self._labels[row], parents), ()):
                if node not in used:
                    yield cell, row, node


def match_nodes(
    parents: Sequence[tuple[int, ...]],
    labels: Sequence[Hashable],
    other_parents: Sequence[tuple[int, ...]],
    other_labels: Sequence[Hashable],
) -> np.ndarray:
    """Match the nodes of a graph with those of the same graph in another order.

    Args:
        parents: the parents of each of the N nodes.
        labels: the nodes' labels, such as their primitives.
        other_parents: the parents of each node in the other order.
        other_labels: the nodes' labels in the other order.

    Returns:
        (N,) int: node i is node `result[i]` in the other order.

    Raises:
        ValueError: if the graphs differ, or two nodes have the same place in the graph.
    """
    colors = _color_nodes(parents, other_parents, labels=[*labels, *other_labels])
    first, second = colors[: len(parents)], colors[len(parents) :]
    if len(set(first)) < len(first) or set(first) != set(second) or len(first) != len(second):
        raise ValueError(
            f"{len(set(first) ^ set(second))} places of nodes are in only one of the graphs and"
            f" {len(first) - len(set(first))} nodes share a place, expected the same graph twice"
        )
    position = {color: node for node, color in enumerate(second)}
    return np.array([position[color] for color in first])


def _color_nodes(
    *graphs: Sequence[tuple[int, ...]], labels: Sequence[Hashable] | None = None
) -> list[int]:
    """Colour the nodes of several graphs, so that equal places in equal graphs get equal colours.

    Runs colour refinement (Weisfeiler and Leman, 1968) on the disjoint union.

    Args:
        graphs: for each graph, the parents of each of its nodes.
        labels: the labels of all nodes; None gives all of them the same label.

    Returns:
        A colour for each node of the first graph, then of the second, and so on.
    """
    parents: list[tuple[int, ...]] = []
    for graph in graphs:
        offset = len(parents)
        parents += [tuple(parent + offset for parent in node) for node in graph]
    children: list[list[int]] = [[] for _ in parents]
    for node, sources in enumerate(parents):
        for source in sources:
            children[source].append(node)
    known: dict[Hashable, int] = {}
    colors = [known.setdefault(label, len(known)) for label in labels or [None] * len(parents)]
    num_colors = len(known)
    while True:
        table: dict[tuple, int] = {}
        colors = [
            table.setdefault(
                (
                    colors[node],
                    tuple(sorted(colors[parent] for parent in parents[node])),
                    tuple(sorted(colors[child] for child in children[node])),
                ),
                len(table),
            )
            for node in range(len(parents))
        ]
        if len(table) == num_colors:
            return colors
        num_colors = len(table)
