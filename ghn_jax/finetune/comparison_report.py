"""The results of a comparison of initialisations: rows, and how they are shown and written."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import rich.progress
import rich.table

from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import (
    check_count,
    check_instance,
    check_number,
    describe_value,
    shorten,
)
from ghn_jax.evaluation.evaluate import mean_and_standard_error
from ghn_jax.evaluation.report import write_whole
from ghn_jax.extras import extra

RESULTS = "results.json"


class RunResult(NamedTuple):
    """The result of one fine-tuning run.

    Attributes:
        seed: The run's seed.
        learning_rate: The run's learning rate.
        curve: Pairs of a step and the top-1 accuracy on validation images, in [0, 1].
        test: Top-1 accuracy on test images; None if the rate was not chosen.
    """

    seed: int
    learning_rate: float
    curve: list[tuple[int, float]]
    test: float | None = None

    @property
    def validation(self) -> float:
        """Top-1 accuracy on validation images after the last step; 0 if the loss was not finite."""
        return self.curve[-1][1] if self.curve else 0.0


class Row(NamedTuple):
    """One row of the table: an architecture trained from one initialisation.

    Attributes:
        architecture: The architecture's name on the command line.
        init: The name of the initialisation.
        learning_rate: The learning rate that was best on validation images.
        runs: The runs with that rate, one for each seed.
    """

    architecture: str
    init: str
    learning_rate: float
    runs: list[RunResult]

    def mean(self, read: Callable[[RunResult], float]) -> tuple[float, float]:
        """Return the mean and its standard error over seeds, which is 0 for a single seed."""
        return mean_and_standard_error([read(run) for run in self.runs])


class ComparisonProgress:
    """A progress bar over the runs of a comparison, or a line per run without a terminal."""

    def __init__(self, num_runs: int) -> None:
        columns = (
            rich.progress.TextColumn("[bold]run {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeRemainingColumn(),
        )
        self._bar = rich.progress.Progress(*columns)
        self._task = self._bar.add_task("", total=num_runs)

    def follow(self, name: str, results: Iterable[RunResult]) -> Iterator[RunResult]:
        """Show results as they come, under a name."""
        for result in results:
            line = (
                f"{name}  rate {result.learning_rate:g}  seed {result.seed}  validation top-1"
                f" {100 * result.validation:.2f}%"
            )
            self._bar.update(self._task, description=line, advance=1)
            if not self._bar.console.is_terminal:
                self._bar.console.print(line, highlight=False)
            yield result

    def __enter__(self) -> ComparisonProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


def write_comparison(
    workdir: pathlib.Path, rows: Sequence[Row], config: dict[str, Any], ghn_name: str
) -> None:
    """Write the rows, their table and their curves.

    Args:
        workdir: Folder of the comparison, created if missing.
        rows: The rows of the comparison.
        config: The comparison's config, as JSON values.
        ghn_name: The GHN's name in the results.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    summary = {
        "config": config,
        "ghn": ghn_name,
        "rows": [{**row._asdict(), "runs": [run._asdict() for run in row.runs]} for row in rows],
    }
    write_whole(workdir / RESULTS, json.dumps(summary, indent=1) + "\n")
    write_whole(workdir / "table.md", markdown_table(rows))
    draw_curves(rows, workdir / "curves.png")


def read_comparison(workdir: str | pathlib.Path) -> list[Row]:
    """Read the rows that `Comparison.run` wrote into its folder.

    Args:
        workdir: Folder of the comparison.

    Raises:
        ValueError: If the file is damaged, or not of a comparison; it names the file.
    """
    path = pathlib.Path(workdir) / RESULTS
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        rows = [_parse_row(values) for values in contents["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not the result of a comparison ({type(error).__name__}: {shorten(error)})"
        ) from error
    return rows


def _parse_row(values: dict[str, Any]) -> Row:
    row = Row(**{**values, "runs": [parse_run(run) for run in values["runs"]]})
    for name in ("architecture", "init"):
        check_instance(name, getattr(row, name), str, "a name")
    check_number("learning_rate", row.learning_rate)
    if not row.runs:
        raise ValueError("runs is empty, expected at least one")
    return row


def parse_run(values: dict[str, Any]) -> RunResult:
    """Build a run's result from what JSON holds of it.

    Args:
        values: The result's fields.

    Raises:
        ValueError: If a value is not as `RunResult` describes it. What has other fields, or is no
            mapping, raises KeyError, TypeError or AttributeError.
    """
    run = RunResult(**{**values, "curve": [(step, value) for step, value in values["curve"]]})
    check_count("seed", run.seed, limits.SEED)
    check_number("learning_rate", run.learning_rate)
    for step, accuracy in run.curve:
        check_count("step", step, limits.COUNT)
        _check_accuracy("accuracy", accuracy)
    if run.test is not None:
        _check_accuracy("test", run.test)
    return run


def _check_accuracy(name: str, value: object) -> None:
    check_number(name, value)
    if cast(float, value) > 1:
        raise ValueError(f"{name} is {describe_value(value)}, expected a share in [0, 1]")


def _cells(row: Row) -> list[str]:
    before = row.mean(lambda run: run.curve[0][1] if run.curve else 0.0)
    after = row.mean(lambda run: run.validation)
    test = row.mean(lambda run: run.test or 0.0)
    shown = [f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in (before, after, test)]
    return [row.architecture, row.init, f"{row.learning_rate:g}", *shown]


_HEADER = ("architecture", "init", "rate", "untrained", "validation", "test")


def rich_table(rows: Sequence[Row]) -> rich.table.Table:
    """Format the rows as a table for the terminal."""
    table = rich.table.Table(title="top-1 in %, mean ± standard error over seeds")
    for index, name in enumerate(_HEADER):
        table.add_column(name, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table; top-1 in %, mean ± standard error over seeds."""
    lines = [list(_HEADER), ["---"] * 2 + ["---:"] * 4, *(_cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw_curves(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draw validation accuracy by step, one panel per architecture, with standard error bands.

    Args:
        rows: The rows of a comparison.
        path: The image file to write, such as `curves.png`.
    """
    with extra("train", "pictures"):
        from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.architecture for row in rows))
    figure = Figure(figsize=(4.2 * len(names), 3.4))
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for row in (row for row in rows if row.architecture == name):
            curves = [run.curve for run in row.runs if run.curve]
            if not curves:
                continue
            steps = [step for step, _ in curves[0]]
            values = 100 * np.array([[accuracy for _, accuracy in curve] for curve in curves])
            mean = values.mean(0)
            error = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0 * mean
            (line,) = axis.plot(steps, mean, label=f"{row.init}, rate {row.learning_rate:g}")
            axis.fill_between(steps, mean - error, mean + error, alpha=0.2, color=line.get_color())
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("validation top-1, %")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
