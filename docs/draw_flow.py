"""Draw `docs/flow.png`, the README's picture, from a trained GHN: `python docs/draw_flow.py`.

All but the stack of layers is real: an architecture of the test split, its graph, what the GHN
makes of it, and the probabilities of the network with predicted parameters on a test image.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import matplotlib
import networkx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import ghn_jax
from ghn_jax.architectures import Genotype
from ghn_jax.data import EvaluationBatches
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks import Hypernetwork

INK, MUTED, CARD, BORDER = "#22303c", "#6b7785", "#ffffff", "#d5dbe1"
GHN_FILL, TARGET_FILL, ACCENT = "#eef4fb", "#fdf5ea", "#c2571a"
WIDTH, HEIGHT = 12.6, 6.3  # inches; positions below are in these units
PANEL_WIDTH, PANEL_HEIGHT = 2.35, 1.95
COLUMNS = (0.4, 3.5, 6.6, 9.7)
ROWS = (3.55, 0.5)  # upper, lower


def main() -> None:
    """Parse flags, compute and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ghn", default="digits", help="Work directory or name of a packaged GHN.")
    parser.add_argument(
        "--index", type=int, default=6, help="Of the architecture in the test split."
    )
    parser.add_argument("--output", default=str(Path(__file__).with_name("flow.png")))
    options = parser.parse_args()

    ghn = ghn_jax.load(options.ghn)
    space = dataclasses.replace(ghn.experiment.space, split="test")
    architecture = ghn_jax.sample_architecture(space, seed=0, index=options.index)
    prediction = ghn.predict(architecture)
    prepared = ghn.predictor.prepare([prediction.graph])
    variables = {"params": ghn.ghn_params}
    (embeddings,) = ghn.predictor.embed_nodes(ghn.ghn_params, prepared)
    hypernetwork = Hypernetwork(ghn.config)
    tiles = hypernetwork.apply(
        variables, prepared.batch, prepared.requests, method="embed_and_decode"
    )
    batch = EvaluationBatches(ghn_jax.load_dataset("digits"), "test", 64).batch(0)
    logits = jax.jit(prediction.network.apply)(prediction.variables, batch.images)

    matplotlib.rcParams |= {"font.family": "DejaVu Sans", "text.color": INK, "font.size": 9}
    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.patch.set_alpha(0)
    draw_frame(figure)
    draw_architecture(add_panel(figure, 0, 0, "architecture"), architecture)
    draw_graph(add_panel(figure, 1, 0, "graph"), prediction.graph)
    draw_embeddings(add_panel(figure, 2, 0, "node embeddings"), embeddings)
    draw_tiles(add_panel(figure, 3, 0, "tiles"), tiles)
    draw_parameters(add_panel(figure, 3, 1, "target parameters"), prediction)
    draw_network(add_panel(figure, 2, 1, "target network"), batch.images)
    probabilities = np.asarray(jax.nn.softmax(logits))
    draw_loss(add_panel(figure, 1, 1, "loss"), probabilities, batch.images, batch.labels)
    figure.savefig(options.output, dpi=150)


def add_panel(figure: Figure, column: int, row: int, title: str) -> Axes:
    """Add axes at a place of the grid, with a title above."""
    left, bottom = COLUMNS[column], ROWS[row]
    axes = figure.add_axes(
        (left / WIDTH, bottom / HEIGHT, PANEL_WIDTH / WIDTH, PANEL_HEIGHT / HEIGHT)
    )
    axes.axis("off")
    figure.text(
        (left + PANEL_WIDTH / 2) / WIDTH,
        (bottom + PANEL_HEIGHT + 0.12) / HEIGHT,
        title,
        ha="center",
        weight="bold",
        size=11.5,
    )
    return axes


def add_caption(axes: Axes, text: str) -> None:
    """Write below a panel."""
    style = {"ha": "center", "va": "top", "color": MUTED, "transform": axes.transAxes}
    axes.text(0.5, -0.03, text, **style)


def draw_frame(figure: Figure) -> None:
    """Draw the card, the two groups of panels, and the arrows."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, HEIGHT)
    axes.axis("off")

    def add_box(left: float, bottom: float, right: float, top: float, fill: str, edge: str) -> None:
        axes.add_patch(
            FancyBboxPatch(
                (left, bottom),
                right - left,
                top - bottom,
                boxstyle="round,pad=0,rounding_size=0.15",
                facecolor=fill,
                edgecolor=edge,
                linewidth=1,
            )
        )

    add_box(0.05, 0.05, WIDTH - 0.05, HEIGHT - 0.05, CARD, BORDER)
    add_box(6.3, 3.35, 12.35, 6.15, GHN_FILL, "#b9d0ea")
    axes.text(
        9.32,
        5.93,
        "graph hypernetwork: the only parameters that are trained",
        ha="center",
        color="#2f639b",
    )
    add_box(6.3, 0.25, 12.35, 2.95, TARGET_FILL, "#efd3ab")

    def add_arrow(start: tuple[float, float], end: tuple[float, float], **style) -> None:
        style = {"color": INK, "linewidth": 1.6} | style
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=15, **style))

    upper, lower = (row + PANEL_HEIGHT / 2 for row in ROWS)
    for left, right in zip(COLUMNS, COLUMNS[1:], strict=False):
        add_arrow((left + PANEL_WIDTH + 0.12, upper), (right - 0.1, upper))
    add_arrow((10.87, 3.35), (10.87, 2.78))
    for left, right in ((COLUMNS[2], COLUMNS[3]), (COLUMNS[1], COLUMNS[2])):
        add_arrow((right - 0.1, lower), (left + PANEL_WIDTH + 0.12, lower))
    add_arrow(
        (COLUMNS[1] + PANEL_WIDTH + 0.1, 2.3), (6.35, 3.5), color=ACCENT, linestyle=(0, (4, 2)),
        connectionstyle="arc3,rad=-0.15",
    )  # fmt: skip
    axes.text(COLUMNS[0], 1.85, "One forward pass\nfor any architecture.", size=11, va="top")
    axes.text(
        COLUMNS[0],
        1.25,
        "Training: every step draws\nnew architectures; the\ngradient goes through the\n"
        "target networks into the\nhypernetwork (dashed).",
        color=MUTED,
        va="top",
        linespacing=1.35,
    )


def draw_architecture(axes: Axes, architecture: ghn_jax.Architecture) -> None:
    """List the operations of the two cells."""

    def describe(name: str, pairs: tuple) -> list[str]:
        steps = [f" {operation:<13}\u2190 {state}" for operation, state in pairs]
        return [f"{name} cell", *steps[:4], *([" ..."] if len(steps) > 4 else [])]

    genotype: Genotype = architecture.genotype
    lines = describe("normal", genotype.normal)
    lines += describe("reduction", genotype.reduce)
    lines += [f"{architecture.num_cells} cells, {architecture.channels} channels"]
    for number, line in enumerate(lines):
        weight = "normal" if line.startswith(" ") else "bold"
        axes.text(
            0.0,
            0.97 - number / len(lines),
            line,
            family="DejaVu Sans Mono",
            size=9,
            weight=weight,
            va="top",
            transform=axes.transAxes,
        )


def draw_graph(axes: Axes, graph: ArchGraph) -> None:
    """Draw the network's own edges, a colour per primitive."""
    network = graph.to_networkx()
    layout = networkx.kamada_kawai_layout(network.to_undirected())
    colors = [matplotlib.colormaps["tab20"](int(p)) for p in graph.primitive]
    networkx.draw_networkx_edges(
        network, layout, ax=axes, node_size=22, width=0.6, edge_color="#8a96a3", arrowsize=4
    )
    networkx.draw_networkx_nodes(
        network, layout, ax=axes, node_size=22, node_color=colors, edgecolors=INK, linewidths=0.3
    )
    num_edges = int((graph.distance == 1).sum())
    add_caption(
        axes,
        f"{graph.num_nodes} nodes of {len(set(graph.primitive.tolist()))} kinds, {num_edges} edges",
    )


def draw_embeddings(axes: Axes, embeddings: np.ndarray) -> None:
    """Show the matrix, a row per node, without the mean row, which hides the rest."""
    embeddings = embeddings - embeddings.mean(0)
    limit = np.percentile(np.abs(embeddings), 98)
    axes.imshow(
        embeddings, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none"
    )
    label = f"{embeddings.shape[0]} nodes \u00d7 {embeddings.shape[1]}"
    add_caption(axes, label)


def draw_tiles(axes: Axes, tiles: dict) -> None:
    """Show slices of one kernel tile as a mosaic."""
    key = max((k for k in tiles if k.kind == "kernel"), key=lambda k: k.height * k.width)
    tile = np.asarray(tiles[key])[0]  # (kh, kw, I, O)
    num_rows, num_columns = 6, 8
    mosaic = np.full((num_rows * (key.height + 1) - 1, num_columns * (key.width + 1) - 1), np.nan)
    for row in range(num_rows):
        for column in range(num_columns):
            top, left = row * (key.height + 1), column * (key.width + 1)
            mosaic[top : top + key.height, left : left + key.width] = tile[:, :, row, column]
    limit = np.nanpercentile(np.abs(mosaic), 98)
    axes.imshow(mosaic, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
    sizes = " \u00d7 ".join(map(str, tile.shape))
    add_caption(axes, f"a kernel tile, {sizes}")


def draw_parameters(axes: Axes, prediction: ghn_jax.Prediction) -> None:
    """List some tensors with their shapes."""
    tensors = prediction.network.plan.tensors
    # Short enough to fit the width.
    middle = [t for t in tensors[len(tensors) // 2 :] if len("".join(t.path)) < 22]
    shown = [*tensors[:3], *middle[:3], *tensors[-2:]]
    lines = [(" ".join(t.path), " \u00d7 ".join(map(str, t.shape))) for t in shown]
    lines[3:3] = [("...", "")]
    lines[7:7] = [("...", "")]
    for number, (name, shape) in enumerate(lines):
        y = 0.98 - number * 0.094
        axes.text(0.0, y, name, size=7.6, va="top", transform=axes.transAxes)
        axes.text(
            1.0, y, shape, size=7.6, va="top", ha="right", color=MUTED, transform=axes.transAxes
        )
    add_caption(axes, f"{len(tensors)} tensors, {prediction.num_parameters:,} numbers")


def draw_network(axes: Axes, images: np.ndarray) -> None:
    """Draw images that enter from below and a stack of layers."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for index in range(6):
        inset = axes.inset_axes((0.02 + 0.165 * index, 0.02, 0.14, 0.17))
        inset.imshow(images[index, :, :, 0], cmap="gray_r", interpolation="none")
        inset.set_xticks([])
        inset.set_yticks([])
    names = ["stem", "normal cells", "reduction cell", "normal cells", "pool, linear"]
    for index, name in enumerate(names):
        bottom = 0.29 + 0.145 * index
        width = 0.86 - 0.11 * index
        axes.add_patch(
            FancyBboxPatch(
                (0.5 - width / 2, bottom),
                width,
                0.1,
                boxstyle="round,pad=0,rounding_size=0.02",
                facecolor="white",
                edgecolor="#d69a4c",
            )
        )
        axes.text(0.5, bottom + 0.045, name, ha="center", va="center", size=8)
    axes.annotate(
        "", (0.5, 0.285), (0.5, 0.2), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1}
    )
    add_caption(axes, "in Flax, on a batch of images")


def draw_loss(
    axes: Axes, probabilities: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> None:
    """Show an image and its probabilities, the label in colour."""
    index = int(np.argmax(probabilities[np.arange(len(labels)), labels] > 0.4))
    colors = [ACCENT if digit == labels[index] else "#b7c0c9" for digit in range(10)]
    inset = axes.inset_axes((0.08, 0.16, 0.9, 0.8))
    inset.bar(range(10), probabilities[index], color=colors)
    inset.set_xticks(range(10))
    inset.set_yticks([])
    inset.tick_params(length=0, labelsize=8, labelcolor=INK)
    for side in ("top", "left", "right"):
        inset.spines[side].set_visible(False)
    left = 0.76 if labels[index] < 5 else 0.1  # beside the tall bar
    picture = axes.inset_axes((left, 0.72, 0.2, 0.24))
    picture.imshow(images[index, :, :, 0], cmap="gray_r", interpolation="none")
    picture.set_xticks([])
    picture.set_yticks([])
    add_caption(axes, "cross-entropy of the label")


if __name__ == "__main__":
    main()
