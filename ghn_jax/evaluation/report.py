"""Show and write what an evaluation measured: progress, JSON files, a table and a plot."""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import rich.console
import rich.progress
import rich.table

from ghn_jax.evaluation.evaluate import ArchitectureResult, ArchitectureSplit, Summary, summarize


def report_splits(
    measured: Iterable[tuple[ArchitectureSplit, Iterable[ArchitectureResult]]],
    title: str,
    folder: Path | None = None,
    lists_architectures: bool = False,
    console: rich.console.Console | None = None,
) -> list[Summary]:
    """Show and write results as they come, and a table at the end.

    Args:
        measured: Splits and their results, such as `evaluate_splits` yields.
        title: What they were measured on, for the table.
        folder: Where `<split>.jsonl` (one line per architecture), `<split>.json` (the summary) and
            `accuracy.png` go; None writes nothing.
        lists_architectures: Whether to print a line per architecture, too.
        console: Where to print; the standard output by default.

    Returns:
        A summary per split.
    """
    console = console or rich.console.Console()
    summaries = []
    for split, split_results in measured:
        results = []
        for result in rich.progress.track(
            split_results,
            f"evaluating {split.name}",
            total=split.num_architectures,
            console=console,
            disable=not console.is_terminal,
        ):
            results.append(result)
            if lists_architectures:
                line = describe_result(split.name, result)
                console.print(line, highlight=False, soft_wrap=True)
        summaries.append(summarize(split.name, results))
        if folder is not None:
            write_results(folder, summaries[-1], results)
    if folder is not None:
        from ghn_jax.evaluation.plots import plot_summaries  # matplotlib takes a second to import

        plot_summaries(summaries, folder / "accuracy.png")
    console.print(summary_table(summaries, title))
    return summaries


def describe_result(split: str, result: ArchitectureResult) -> str:
    """Say in a line how good the parameters of one architecture are."""
    line = (
        f"{split}/{result.index}: {result.num_nodes} nodes, {result.num_parameters} parameters,"
        f" top-1 {100 * result.top1:.2f}%, top-5 {100 * result.top5:.2f}%"
    )
    if result.top1_random is not None and result.top5_random is not None:
        line += (
            f"; random (He) top-1 {100 * result.top1_random:.2f}%,"
            f" top-5 {100 * result.top5_random:.2f}%"
        )
    return line


def write_results(folder: Path, summary: Summary, results: Sequence[ArchitectureResult]) -> None:
    """Write `<split>.jsonl` and `<split>.json`; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(dataclasses.asdict(result)) + "\n" for result in results)
    write_whole(folder / f"{summary.split}.jsonl", lines)
    values = {k: v for k, v in dataclasses.asdict(summary).items() if v is not None}
    write_whole(folder / f"{summary.split}.json", json.dumps(values, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file such that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def summary_table(summaries: Sequence[Summary], title: str) -> rich.table.Table:
    """A row per split: accuracy of predicted parameters, and of random ones where measured."""
    table = rich.table.Table(title=f"accuracy in %, mean +- standard error; {title}")
    table.add_column("split")
    for name in ("networks", "predicted top-1", "best", "top-5", "random (He) top-1"):
        table.add_column(name, justify="right")
    for s in summaries:
        table.add_row(
            s.split,
            str(s.num_architectures),
            _percent(s.top1_mean, s.top1_standard_error),
            f"{100 * s.top1_best:.1f}",
            _percent(s.top5_mean, s.top5_standard_error),
            _percent(s.random_top1_mean, s.random_top1_standard_error),
        )
    return table


def _percent(mean: float | None, error: float | None) -> str:
    return "-" if mean is None or error is None else f"{100 * mean:.1f} +- {100 * error:.1f}"
