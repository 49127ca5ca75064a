"""Evaluate whole splits: progress, JSON files, a table and a plot."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import rich.table

from ghn_jax.architectures import VIT, Architecture, ResNet
from ghn_jax.data import Dataset
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.evaluation.architecture_specs import stored_network
from ghn_jax.evaluation.evaluate import (
    ArchitectureResult,
    Candidate,
    Evaluator,
    Summary,
    summarize,
)
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.sampling import SPLITS, SpaceConfig, sample_architecture
from ghn_jax.targets.plan import Plan, lower
from ghn_jax.training.config import PREDEFINED_SPLIT, ExperimentConfig

# Published numbers of architectures; of the training and search splits a sample.
NUM_ARCHITECTURES = {"test": 500, "val": 500, "wide": 100, "deep": 100, "dense": 100, "bnfree": 100}
NUM_ARCHITECTURES |= {PREDEFINED_SPLIT: 2, "train": 500, "search": 500}
PREDEFINED: tuple[Architecture | ResNet, ...] = (ResNet(), VIT)


def split_space(space: SpaceConfig, split: str) -> SpaceConfig:
    """The space of a split, under the restrictions of the space that was trained on.

    What makes a split out of distribution is lifted: the restrictions on depth, steps and size.

    Args:
        space: Of training.
        split: One of `ghn_jax.sampling.SPLITS`.

    Returns:
        The space to draw from.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if split in ("train", "val", "test", "wide"):
        return dataclasses.replace(space, split=split)
    return dataclasses.replace(
        space, split=split, num_cells=None, max_steps=None, max_parameters=None, max_nodes=None
    )


def split_plans(space: SpaceConfig, split: str, num: int, seed: int) -> Iterator[tuple[int, Plan]]:
    """Yield index and plan of the first architectures of a split."""
    for index in range(num):
        if split == PREDEFINED_SPLIT:
            if index == len(PREDEFINED):
                return
            architecture: Architecture | ResNet = PREDEFINED[index]
        else:
            architecture = sample_architecture(split_space(space, split), seed, index)
        yield index, lower(architecture, space.image_size, space.num_classes)


def stored_plans(
    nets: DeepNets1M, num: int, num_classes: int, max_distance: int
) -> Iterator[Candidate]:
    """Yield index, plan and graph of the first architectures of a file's split.

    Args:
        nets: The split, opened for the images' size.
        num: How many architectures.
        num_classes: Of the networks.
        max_distance: Longest distance with an edge.

    """
    for index in range(num):
        yield index, *stored_network(nets, index, num_classes, max_distance)


def _split_candidates(
    config: ExperimentConfig,
    split: str,
    num: int | None,
    seed: int,
    deepnets: str | os.PathLike[str] | None,
) -> tuple[int, Iterable[Candidate]]:
    """The number of architectures and the architectures of a split."""
    space = config.space
    if deepnets is None or split == PREDEFINED_SPLIT:
        num = NUM_ARCHITECTURES[split] if num is None else num
        return num, split_plans(space, split, num, seed)
    nets = DeepNets1M(deepnets, split, space.image_size)
    num = len(nets) if num is None else num
    if num > len(nets):
        raise ValueError(
            f"num_architectures is {num}, expected at most the {len(nets)} of split {split!r} in"
            f" {nets.path}"
        )
    return num, stored_plans(nets, num, space.num_classes, config.ghn.virtual_edges)


def _describe(split: str, result: ArchitectureResult) -> str:
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


def evaluate_splits(
    predictor: Predictor,
    engine: BlockwiseEngine,
    dataset: Dataset,
    ghn_params: Any,
    config: ExperimentConfig,
    *,
    splits: Sequence[tuple[str, int | None]],
    image_split: str,
    seed: int | None = None,
    with_random: bool = False,
    folder: Path | None = None,
    console: rich.console.Console | None = None,
    deepnets: str | os.PathLike[str] | None = None,
    lists_architectures: bool = False,
) -> list[Summary]:
    """Evaluate splits one after the other and show them in a table.

    Args:
        predictor: Of the hypernetwork.
        engine: Runs the networks.
        dataset: Images.
        ghn_params: Of the hypernetwork.
        config: Of the run: the space, the evaluation's seed and batch size.
        splits: Pairs of a split and a number of architectures; None is the published number, or
            all of a file.
        image_split: "validation" or "test".
        seed: Draws the architectures, and random parameters; None is the config's.
        with_random: Whether the same architectures are also evaluated with He initialisation.
        folder: Where `<split>.jsonl` (one line per architecture) and `<split>.json` (the
            summary) go;
            None writes nothing.
        console: Where to print; the standard output by default.
        deepnets: Folder of DeepNets-1M files to read the architectures from; None draws them. The
            predefined split is in no file.
        lists_architectures: Whether to print a line per architecture, too.

    Returns:
        A summary per split.

    Raises:
        ValueError: If a file lacks a split, or has fewer architectures than asked for.
    """
    console = console or rich.console.Console()
    evaluation = config.evaluation
    seed = evaluation.seed if seed is None else seed
    evaluator = Evaluator(
        predictor,
        engine,
        dataset,
        image_split,
        evaluation.batch_size,
        evaluation.max_images,
        config.training.num_threads,
    )
    candidates = [
        _split_candidates(config, split, num, seed, deepnets) for split, num in splits
    ]  # files are opened before anything runs
    summaries = []
    for (split, _), (num, plans) in zip(splits, candidates, strict=True):
        random_seed = seed if with_random else None
        results = []
        for result in rich.progress.track(
            evaluator.evaluate(ghn_params, plans, random_seed),
            f"evaluating {split}",
            total=num,
            console=console,
            disable=not console.is_terminal,
        ):
            results.append(result)
            if lists_architectures:
                console.print(_describe(split, result), highlight=False, soft_wrap=True)
        summary = summarize(split, results)
        summaries.append(summary)
        if folder is not None:
            write_results(folder, summary, results)
    if folder is not None:
        from ghn_jax.evaluation.plots import plot_summaries  # matplotlib takes a second to import

        plot_summaries(summaries, folder / "accuracy.png")
    console.print(summary_table(summaries, f"{dataset.name}, {image_split} images, seed {seed}"))
    return summaries


def write_results(folder: Path, summary: Summary, results: Sequence[ArchitectureResult]) -> None:
    """Write `<split>.jsonl` and `<split>.json`; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(dataclasses.asdict(result)) + "\n" for result in results)
    _write(folder / f"{summary.split}.jsonl", lines)
    values = {k: v for k, v in dataclasses.asdict(summary).items() if v is not None}
    _write(folder / f"{summary.split}.json", json.dumps(values, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
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
