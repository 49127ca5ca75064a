"""Draw a graph with a colour and a shape per primitive, and its longest path folded into columns.

In: an `ArchGraph`. Out: a figure, or a file. Nodes of equal depth form a row; the rows run down the
first column, up the second and so on, so that neighbours stay neighbours and a deep network fits on
a page. An edge beyond the next row, such as a residual connection, bends around what it skips.
"""

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ghn_jax.extras import extra
from ghn_jax.graphs import PRIMITIVES, ArchGraph
from ghn_jax.graphs.properties import find_depths, find_parents, graph_properties

with extra("train", "pictures"):
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve


class Style(NamedTuple):
    """The appearance of a primitive."""

    color: str
    marker: str


# Kinds of operations share a hue: convolutions blue and purple, norms green, pools orange, merges
# grey, attention and gates red, added parameters yellow.
STYLES: dict[str, Style] = {
    "input": Style("#111111", "s"),
    "conv": Style("#1f77b4", "o"),
    "sep_conv": Style("#7fb3e6", "h"),
    "dil_conv": Style("#8e63c7", "H"),
    "bias": Style("#b9c4cf", "v"),
    "bn": Style("#2ca02c", "^"),
    "ln": Style("#98d67f", "^"),
    "max_pool": Style("#e6761b", "D"),
    "avg_pool": Style("#f7b267", "D"),
    "glob_avg": Style("#a0522d", "d"),
    "sum": Style("#7a7a7a", "P"),
    "concat": Style("#3d3d3d", "X"),
    "msa": Style("#d62728", "*"),
    "cse": Style("#e377c2", "*"),
    "pos_enc": Style("#e8c547", "p"),
}


class Picture(Figure):
    """A figure that notebooks display, whether or not pyplot is set up."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def draw(graph: ArchGraph, path: str | Path | None = None, title: str | None = None) -> Picture:
    """Draw a graph.

    Args:
        graph: The graph of a network; virtual edges are not drawn.
        path: The file to write, whose suffix decides the format: .svg, .pdf or .png.
        title: The title above the picture; None shows the graph's properties.

    Returns:
        The figure, which notebooks display.
    """
    parents = find_parents(graph)
    positions, columns = place_nodes(parents)
    span = np.ptp(positions, axis=0) + 2
    figure = Picture(figsize=(2.2 + 0.22 * span[0], 1.2 + 0.22 * span[1]), layout="constrained")
    axes = figure.add_subplot()
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title or str(graph_properties(graph)), fontsize=9)
    curves = [
        _connect(positions[parent], positions[node], columns[parent], columns[node])
        for node, sources in enumerate(parents)
        for parent in sources
    ]
    axes.add_patch(
        PathPatch(Curve.make_compound_path(*curves), facecolor="none", edgecolor="#9a9a9a", lw=0.7)
    )
    for name, style in STYLES.items():
        chosen = graph.primitive == PRIMITIVES.index(name)
        if chosen.any():
            axes.scatter(
                positions[chosen, 0],
                positions[chosen, 1],
                s=60 if style.marker == "*" else 34,
                c=style.color,
                marker=style.marker,
                edgecolors="white",
                linewidths=0.4,
                zorder=2,
                label=f"{name} ({int(chosen.sum())})",
            )
    axes.margins(0.03)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def place_nodes(parents: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the positions of a graph's nodes.

    Args:
        parents: The parents of each node, in topological order.

    Returns:
        The nodes' (N, 2) positions, about one apart and with y upwards, and their (N,) columns.
    """
    layers = _find_layers(parents)
    num_layers = int(layers.max()) + 1
    widths = np.bincount(layers)
    # A page a little wider than high, with columns as wide as their widest layer plus a gap.
    num_rows = max(8, math.ceil(math.sqrt(num_layers * (float(widths.mean()) + 2) / 1.4)))
    offsets = _order_layers(parents, layers)
    positions = np.zeros((len(parents), 2))
    columns = layers // num_rows
    left = 0.0
    for column in range(int(columns.max()) + 1):
        inside = columns == column
        width = float(widths[layers[inside]].max())
        positions[inside, 0] = left + width / 2 + offsets[inside]
        left += width + 1.6
    rows = layers % num_rows
    positions[:, 1] = -np.where(columns % 2 == 0, rows, num_rows - 1 - rows)
    return positions, columns


def _find_layers(parents: list[tuple[int, ...]]) -> np.ndarray:
    """Find each node's depth; a node without parents goes right before its first child."""
    layers = find_depths(parents)
    first_child = np.full(len(parents), len(parents))
    for node, sources in enumerate(parents):
        for source in sources:
            first_child[source] = min(first_child[source], layers[node])
    for node, sources in enumerate(parents):
        if node and not sources and first_child[node] < len(parents):
            layers[node] = max(first_child[node] - 1, 0)
    return layers


def _order_layers(parents: list[tuple[int, ...]], layers: np.ndarray) -> np.ndarray:
    """Find (N,) offsets from the middle of a layer, each near the mean of the node's parents."""
    offsets = np.zeros(len(parents))
    for layer in range(int(layers.max()) + 1):
        nodes = np.flatnonzero(layers == layer)
        wanted = [np.mean([offsets[p] for p in parents[n]]) if parents[n] else 1e9 for n in nodes]
        order = np.argsort(wanted, kind="stable")
        offsets[nodes[order]] = np.arange(len(nodes)) - (len(nodes) - 1) / 2
    return offsets


def _connect(start: np.ndarray, end: np.ndarray, start_column: int, end_column: int) -> Curve:
    """Draw a line to the next row, otherwise a curve that bends to the right."""
    distance = abs(end[1] - start[1])
    if start_column == end_column and distance <= 1.01:
        return Curve([start, end])
    bend = min(0.35 + 0.12 * distance, 1.6) if start_column == end_column else 0.0
    middle = (start + end) / 2 + np.array([2 * bend, 0])
    return Curve([start, middle, end], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])
