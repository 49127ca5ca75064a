"""Show and write the results of an evaluation: progress, JSON files, a table and a plot."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import rich.console
import rich.progress
import rich.table

from ghn_jax.evaluation.evaluate import (
    ArchitectureResult,
    ArchitectureSplit,
    Mean,
    Summary,
    summarize,
)
from ghn_jax.tasks import CLASSIFICATION, Task

Labels = Mapping[str, str]


def report_splits(
    measured: Iterable[tuple[ArchitectureSplit, Iterable[ArchitectureResult]]],
    title: str,
    folder: Path | None = None,
    lists_architectures: bool = False,
    console: rich.console.Console | None = None,
    task: Task = CLASSIFICATION,
) -> list[Summary]:
    """Show and write results as they arrive, and print a table at the end.

    Args:
        measured: Splits and their results, as `evaluate_splits` yields them.
        title: Title of the table.
        folder: The folder for `<split>.jsonl` (one line per architecture), `<split>.json` (the
            summary) and `splits.png`; None writes nothing.
        lists_architectures: Whether to print one line per architecture, too.
        console: The console to print to, by default the standard output.
        task: The task, which names the metrics and says whether lower is better.

    Returns:
        One summary per split.
    """
    console = console or rich.console.Console()
    labels = task.metric_labels
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
                line = describe_result(split.name, result, labels)
                console.print(line, highlight=False, soft_wrap=True)
        summaries.append(summarize(split.name, results, task.lower_is_better))
        if folder is not None:
            write_results(folder, summaries[-1], results)
    if folder is not None:
        from ghn_jax.evaluation.plots import plot_summaries  # matplotlib takes a second to import

        plot_summaries(summaries, folder / "splits.png", labels)
    console.print(summary_table(summaries, title, labels))
    return summaries


def describe_result(
    split: str, result: ArchitectureResult, labels: Labels = CLASSIFICATION.metric_labels
) -> str:
    """Describe in one line how good the parameters of an architecture are."""
    line = (
        f"{split}/{result.index}: {result.num_nodes} nodes, {result.num_parameters} parameters,"
        f" {_describe_metrics(result.metrics, labels)}"
    )
    if result.random is not None:
        line += f"; random (He) {_describe_metrics(result.random, labels)}"
    return line


def _describe_metrics(metrics: Mapping[str, float], labels: Labels) -> str:
    parts = []
    for name, label in labels.items():
        is_share = label.endswith(" %")
        value = f"{100 * metrics[name]:.2f}%" if is_share else f"{metrics[name]:.4g}"
        parts.append(f"{label.removesuffix(' %')} {value}")
    return ", ".join(parts)


def write_results(folder: Path, summary: Summary, results: Sequence[ArchitectureResult]) -> None:
    """Write `<split>.jsonl` and `<split>.json`, of which a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(result.to_dict()) + "\n" for result in results)
    write_whole(folder / f"{summary.split}.jsonl", lines)
    write_whole(folder / f"{summary.split}.json", json.dumps(summary.to_dict(), indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file such that it exists completely or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def summary_table(
    summaries: Sequence[Summary], title: str, labels: Labels = CLASSIFICATION.metric_labels
) -> rich.table.Table:
    """A row per split: metrics with predicted parameters, and with random ones where measured."""
    first, *others = labels
    table = rich.table.Table(title=f"mean +- standard error; {title}")
    table.add_column("split")
    names = [f"predicted {labels[first]}", "best", *(labels[name] for name in others)]
    for name in ("networks", *names, f"random (He) {labels[first]}"):
        table.add_column(name, justify="right")
    for s in summaries:
        table.add_row(
            s.split,
            str(s.num_architectures),
            _format(s.metrics[first], labels[first]),
            _format_number(s.best, labels[first]),
            *(_format(s.metrics[name], labels[name]) for name in others),
            "-" if s.random is None else _format(s.random[first], labels[first]),
        )
    return table


def _format(mean: Mean, label: str) -> str:
    if label.endswith(" %"):
        return " +- ".join(_format_number(number, label) for number in mean)
    return f"{mean.mean:.4g} +- {mean.standard_error:.2g}"


def _format_number(number: float, label: str) -> str:
    return f"{100 * number:.1f}" if label.endswith(" %") else f"{number:.4g}"
