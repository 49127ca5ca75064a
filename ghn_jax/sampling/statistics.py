"""Measure what a space of architectures contains and compare it with the original generator.

In: a `SpaceConfig`, a seed and a number of architectures. Out: a `Distribution`, a table and a
plot. `python -m ghn_jax.sampling.statistics --help` does all three.

`ORIGINAL_TRAIN` holds the statistics of 300 training architectures drawn by the original's
generator (facebookresearch/ppuda, experiments/net_generator.py). Both samples have sampling errors,
so differences are shown in standard errors of the difference; the original's standard error, since
its individual draws were not kept, is that of our sample at the original's size. Its mean of 0.89 M
parameters is a low draw: means of 300 scatter by 0.08, and larger samples by its rules give 1.1 M,
as here.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ghn_jax.architectures import OPERATIONS, Architecture
from ghn_jax.extras import extra
from ghn_jax.sampling.parameter_count import count_parameters
from ghn_jax.sampling.sampler import (
    REFERENCE_CHANNELS,
    REFERENCE_CLASSES,
    REFERENCE_FC_SIZE,
    sample_architecture,
)
from ghn_jax.sampling.space import SPLITS, SpaceConfig
from ghn_jax.targets.plan import lower

with extra("train", "pictures"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORIGINAL_NUM_ARCHITECTURES = 300

ORIGINAL_TRAIN: Mapping[str, float] = {
    "nodes": 180.0,
    "parameters (M, C=32)": 0.89,
    "cells": 11.0,
    "1 step": 0.47,
    "2 steps": 0.39,
    "3 steps": 0.08,
    "4 steps": 0.07,
    "with attention": 0.33,
    "without norm": 0.03,
    "global pooling": 0.98,
    "type-1 stem": 0.49,
    "max_pool_3x3": 0.126,
    "skip_connect": 0.117,
    "avg_pool_3x3": 0.114,
    "none": 0.076,
    "sep_conv_5x5": 0.065,
    "conv_1x1": 0.061,
    "msa": 0.057,
    "dil_conv_5x5": 0.057,
    "sep_conv_3x3": 0.055,
    "dil_conv_3x3": 0.050,
    "conv_7x1_1x7": 0.050,
    "conv_3x3": 0.049,
    "conv_5x5": 0.045,
    "cse": 0.043,
    "conv_7x7": 0.035,
}
"""Means and shares over 300 training architectures from the original's generator."""

ORIGINAL_RANGES: Mapping[str, tuple[float, float, float]] = {
    "nodes": (33.0, 497.0, 86.0),
    "parameters (M, C=32)": (0.02, 9.7, float("nan")),
}
"""The smallest value, the largest and the standard deviation in the same sample, where known."""


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number measured on every architecture.

    Attributes:
        values: (num_architectures,) float64.
        weights: (num_architectures,) float64; the mean is sum(values) / sum(weights). Ones for
            plain numbers; the number of operations of each architecture for shares of operations.
    """

    values: np.ndarray
    weights: np.ndarray

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return float(self.values.min())

    @property
    def maximum(self) -> float:
        """The largest value."""
        return float(self.values.max())

    @property
    def mean(self) -> float:
        """The mean, or the share."""
        return float(self.values.sum() / self.weights.sum())

    @property
    def std(self) -> float:
        """The standard deviation over architectures."""
        return float(self.values.std())

    def standard_error(self, num_architectures: int) -> float:
        """Return the standard error of the mean in a sample of a given size, in the mean's unit.

        Args:
            num_architectures: size of the sample.

        Returns:
            The standard error of a ratio of sums (Cochran, Sampling Techniques, section 2.11),
            since operations in the same architecture are not independent draws.
        """
        residuals = self.values - self.mean * self.weights
        return float(residuals.std() / self.weights.mean() / np.sqrt(num_architectures))


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Statistics of a sample of architectures.

    Attributes:
        space: the space from which the sample was drawn.
        num_architectures: size of the sample.
        quantities: the measured numbers under the names of `ORIGINAL_TRAIN`. Nodes are those of the
            graph; parameters are those of all layers at the reference width, including unused ones,
            as in the original.
    """

    space: SpaceConfig
    num_architectures: int
    quantities: Mapping[str, Quantity]

    def deviation(self, name: str) -> float:
        """Return how far a mean is from the original's, in standard errors of the difference.

        Args:
            name: one of the names in `ORIGINAL_TRAIN`.

        Returns:
            (here - original) / standard error; infinite if they differ although nothing varies.
        """
        quantity = self.quantities[name]
        error = np.hypot(
            quantity.standard_error(self.num_architectures),
            quantity.standard_error(ORIGINAL_NUM_ARCHITECTURES),
        )
        difference = quantity.mean - ORIGINAL_TRAIN[name]
        return float(difference / error) if error > 0 else math.copysign(math.inf, difference)


def measure_distribution(
    space: SpaceConfig,
    seed: int,
    num_architectures: int,
    track_fn: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Distribution:
    """Draw architectures and measure them.

    Args:
        space: the space to draw from.
        seed: seed of the stream.
        num_architectures: number of architectures to draw, from index 0 on; at least 2.
        track_fn: wraps the indices to show progress.

    Returns:
        The measurements.

    Raises:
        ValueError: if there are fewer than two architectures.
    """
    if num_architectures < 2:
        raise ValueError(f"num_architectures is {num_architectures}, expected at least 2")
    rows = [
        _measure(space, sample_architecture(space, seed, index))
        for index in track_fn(range(num_architectures))
    ]
    num_operations = np.array([row.pop("operations") for row in rows], np.float64)
    ones = np.ones(num_architectures)
    quantities = {
        name: Quantity(
            values=np.array([row[name] for row in rows], np.float64),
            weights=num_operations if name in OPERATIONS else ones,
        )
        for name in rows[0]
    }
    return Distribution(space, num_architectures, quantities)


def _measure(space: SpaceConfig, architecture: Architecture) -> dict[str, float]:
    """Measure one architecture; operations are given as counts, to be divided by `operations`."""
    reference = dataclasses.replace(
        architecture, channels=REFERENCE_CHANNELS, fc_size=REFERENCE_FC_SIZE
    )
    count = count_parameters(reference, space.image_size, REFERENCE_CLASSES)
    plan = lower(architecture, *space.input_sizes)
    operations = architecture.genotype.operations
    _, max_steps = space.rules.num_steps
    row: dict[str, float] = {
        "nodes": len(plan.nodes),
        f"parameters (M, C={REFERENCE_CHANNELS})": count / 1e6,
        "cells": architecture.num_cells,
    }
    for steps in range(1, max_steps + 1):
        row[f"{steps} step{'s' if steps > 1 else ''}"] = architecture.genotype.num_steps == steps
    row["with attention"] = architecture.has_attention
    row["without norm"] = architecture.norm is None
    row["global pooling"] = architecture.global_pool
    row["type-1 stem"] = architecture.stem_type == 1
    row.update({operation: operations.count(operation) for operation in OPERATIONS})
    return {**row, "operations": len(operations)}


def tabulate(distribution: Distribution) -> Table:
    """Tabulate the measurements, next to the original's if this is the training distribution.

    Args:
        distribution: the measurements.

    Returns:
        A rich table with one row per quantity, whose last column is `Distribution.deviation`.
    """
    compares = has_original(distribution.space)
    table = Table(
        title=f"{distribution.num_architectures} architectures of split "
        f"{distribution.space.split!r}",
        caption="shares of operations are among all operations of all genotypes",
    )
    table.add_column("quantity")
    for header in ("here", *(("original", "deviation (standard errors)") if compares else ())):
        table.add_column(header, justify="right")
    for name, quantity in distribution.quantities.items():
        here = _format(name, quantity.mean, quantity.minimum, quantity.maximum, quantity.std)
        cells = [name, here]
        if compares:
            original = _format(name, ORIGINAL_TRAIN[name], *ORIGINAL_RANGES.get(name, ()))
            cells += [original, f"{distribution.deviation(name):+.1f}"]
        table.add_row(*cells)
    return table


def has_original(space: SpaceConfig) -> bool:
    """Return whether `ORIGINAL_TRAIN` describes a space: the training split without restrictions.

    Args:
        space: any space; fields that do not affect the measured numbers, like widths, are ignored.

    Returns:
        Whether a comparison makes sense.
    """
    default = SpaceConfig(split="train", widths=space.widths, fc_sizes=space.fc_sizes)
    return space == default


def _format(name: str, mean: float, *extent: float) -> str:
    if name not in ("nodes", "cells") and not name.startswith("parameters"):
        return f"{100 * mean:.1f}%"
    digits = 2 if name.startswith("parameters") else 1
    if len(extent) < 3:
        return f"{mean:.{digits}f}"
    minimum, maximum, std = extent
    spread = "" if np.isnan(std) else f" +- {std:.{digits}f}"
    return f"{mean:.{digits}f}{spread} ({minimum:.{digits}f}..{maximum:.{digits}f})"


def plot_distribution(distribution: Distribution, path: Path) -> None:
    """Draw histograms of nodes and parameters, and bars for the shares of operations.

    Args:
        distribution: the measurements.
        path: the file to write, whose suffix decides the format.

    Raises:
        ValueError: if matplotlib does not know the format.
    """
    compares = has_original(distribution.space)
    figure = Figure(figsize=(12, 7), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    names = ("nodes", f"parameters (M, C={REFERENCE_CHANNELS})")
    for column, name in enumerate(names):
        axes = figure.add_subplot(grid[0, column])
        _plot_histogram(axes, name, distribution.quantities[name], compares)
    axes = figure.add_subplot(grid[1, :])
    _plot_shares(axes, distribution, compares)
    split, size = distribution.space.split, distribution.num_architectures
    figure.suptitle(f"{size} architectures of split {split!r}")
    figure.savefig(path, dpi=120)


def _plot_histogram(axes: Axes, name: str, quantity: Quantity, compares: bool) -> None:
    axes.hist(quantity.values, bins=40, color="tab:blue", alpha=0.7)
    axes.axvline(quantity.mean, color="tab:blue", label=f"mean {quantity.mean:.3g}")
    if compares:
        original = ORIGINAL_TRAIN[name]
        axes.axvline(original, color="tab:orange", ls="--", label=f"original's {original:.3g}")
    axes.set(xlabel=name, ylabel="architectures")
    axes.legend()


def _plot_shares(axes: Axes, distribution: Distribution, compares: bool) -> None:
    positions = np.arange(len(OPERATIONS))
    quantities = [distribution.quantities[operation] for operation in OPERATIONS]
    size = distribution.num_architectures
    width = 0.4 if compares else 0.8
    axes.bar(
        positions - (0.2 if compares else 0.0),
        [100 * quantity.mean for quantity in quantities],
        width,
        yerr=[100 * quantity.standard_error(size) for quantity in quantities],
        label="here, with standard errors",
    )
    if compares:
        shares = [100 * ORIGINAL_TRAIN[operation] for operation in OPERATIONS]
        axes.bar(positions + 0.2, shares, width, label="original, 300 architectures")
    axes.set_xticks(positions, OPERATIONS, rotation=35, ha="right")
    axes.set_ylabel("share of operations (%)")
    axes.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command: print the table and write the plot.

    Args:
        arguments: the command line without the program's name; None means the process's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ghn_jax.sampling.statistics",
        description="Draw architectures, print what they look like and compare with the original.",
    )
    parser.add_argument(
        "--split", choices=tuple(SPLITS), default="train", help="Split whose rules to follow."
    )
    parser.add_argument(
        "--num_architectures", type=int, default=300, help="How many architectures to draw."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the stream.")
    parser.add_argument("--plot", type=Path, help="File to write a figure to, e.g. out.png.")
    options = parser.parse_args(arguments)
    console = Console()
    distribution = measure_distribution(
        SpaceConfig(split=options.split),
        options.seed,
        options.num_architectures,
        lambda indices: track(indices, "drawing", console=console),
    )
    console.print(tabulate(distribution))
    if options.plot is not None:
        plot_distribution(distribution, options.plot)
        console.print(f"wrote {options.plot}")


if __name__ == "__main__":
    main()
