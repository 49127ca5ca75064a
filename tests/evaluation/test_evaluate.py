"""Evaluation: accuracies against a plain loop, means and errors by hand, files, the plot."""

import dataclasses
import functools
import io
import json
import math

import matplotlib.figure
import numpy as np
import pytest
import rich.console
from plain_composition import jit, one_cell
from random_parameters import draw_parameters

from ghn_jax.architectures import VIT, ResNet
from ghn_jax.data import load_dataset
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.evaluation import splits
from ghn_jax.evaluation.evaluate import (
    ArchitectureResult,
    ArchitectureSplit,
    EvaluationImages,
    Evaluator,
    evaluate_splits,
    mean_and_standard_error,
    summarize,
)
from ghn_jax.evaluation.plots import plot_summaries
from ghn_jax.evaluation.report import describe_result, report_splits
from ghn_jax.hypernetworks import Hypernetwork, ghn2
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.sampling import SpaceConfig, sample_architecture
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.network import TargetNetwork, params_tree
from ghn_jax.tasks import Classification
from ghn_jax.training.config import ExperimentConfig

PLANS = (one_cell("conv_1x1", "skip_connect"), one_cell("avg_pool_3x3", "conv_1x1"))
SPACE = SpaceConfig(
    widths=(8,), num_cells=(4, 5), max_steps=1, max_nodes=90, image_size=8, global_pool_only=True
)


@functools.cache
def dataset():
    return load_dataset("digits")


@functools.cache
def parts():
    """A predictor, an engine, and parameters for them."""
    predictor = Predictor(ghn2(hidden_size=8, max_shape=(8, 8, 7, 7)))
    batch = predictor.prepare([build_graph(PLANS[0])]).batch
    init = Hypernetwork(predictor.config).init
    return predictor, BlockwiseEngine(), draw_parameters(init, batch, [()])["params"]


def plain_accuracy(plan, arrays, split, num_images):
    """Top-1 and top-5 of the first images, in batches of 64 that wrap around at the end."""
    images = (split.images - np.float32(dataset().mean)) / np.float32(dataset().std)
    apply = jit(TargetNetwork(plan).apply)
    firsts, fives = [], []
    for start in range(0, num_images, 64):
        positions = np.arange(start, start + 64) % len(images)
        logits = apply({"params": params_tree(plan, arrays)}, images[positions])
        for row, position in zip(np.asarray(logits), positions, strict=True):
            order = np.argsort(-row)
            firsts.append(order[0] == split.labels[position])
            fives.append(split.labels[position] in order[:5])
    return np.mean(firsts[:num_images]), np.mean(fives[:num_images])


@pytest.mark.parametrize(
    ("image_split", "max_images", "num_threads"), [("test", None, 1), ("validation", 70, 2)]
)
def test_accuracy_is_that_of_the_plain_networks(image_split, max_images, num_threads):
    predictor, engine, params = parts()
    images = EvaluationImages(dataset(), image_split, 64, max_images)
    evaluator = Evaluator(predictor, engine, images, num_threads=num_threads)
    results = list(evaluator.evaluate(params, [(3, PLANS[0]), (8, PLANS[1])]))
    split = getattr(dataset(), image_split)
    # 360 test images are no multiple of 64: each counts once.
    num_images = {"test": 360, "validation": 70}[image_split]
    assert [result.index for result in results] == [3, 8]
    for plan, result in zip(PLANS, results, strict=True):
        (arrays,) = predictor.predict(params, predictor.prepare([build_graph(plan)]))
        top1, top5 = plain_accuracy(plan, arrays, split, num_images)
        assert result.metrics == {"top1": top1, "top5": top5}
        assert 0 < top1 < top5 < 1
        assert result.num_nodes == len(plan.nodes)
        assert result.num_parameters == sum(array.size for array in arrays)
        assert result.random is None


def test_random_parameters_follow_seed_and_index():
    predictor, engine, params = parts()
    evaluator = Evaluator(predictor, engine, EvaluationImages(dataset(), "test", 64))

    def random_accuracies(indices, seed):
        pairs = [(index, PLANS[0]) for index in indices]
        return [r.random["top1"] for r in evaluator.evaluate(params, pairs, random_seed=seed)]

    first = random_accuracies([0, 1, 2], seed=0)
    assert len(set(first)) > 1 and all(0 < accuracy < 0.5 for accuracy in first)
    assert random_accuracies([2, 0], seed=0) == [first[2], first[0]]
    assert random_accuracies([0, 1, 2], seed=1) != first


def make_results(top1, random=None):
    """Results with these accuracies; top-5 is 0.9, and 0.5 with random parameters."""
    return [
        ArchitectureResult(
            index,
            num_nodes=10,
            num_parameters=100,
            metrics={"top1": value, "top5": 0.9},
            random=random and {"top1": random[index], "top5": 0.5},
        )
        for index, value in enumerate(top1)
    ]


def test_summary_by_hand():
    # Deviations -0.2, 0, 0.2: variance 0.08 / (3 - 1), standard error sqrt(0.04 / 3).
    summary = summarize("deep", make_results([0.5, 0.7, 0.9]))
    assert (summary.split, summary.num_architectures, summary.best) == ("deep", 3, 0.9)
    assert summary.metrics["top1"] == pytest.approx((0.7, math.sqrt(0.04 / 3)))
    assert summary.metrics["top5"] == pytest.approx((0.9, 0))
    assert summary.random is None
    summary = summarize("deep", make_results([0.5, 0.7], [0.1, 0.3]))
    assert summary.random["top1"] == pytest.approx((0.2, 0.1))
    assert summary.random["top5"] == pytest.approx((0.5, 0))
    assert summarize("deep", make_results([0.5])).metrics["top1"].standard_error == 0
    with pytest.raises(ValueError, match="^results is empty, expected at least one architecture"):
        summarize("deep", [])


def test_spaces_of_splits():
    for split in ("train", "val", "test", "wide"):
        assert splits.split_space(SPACE, split) == dataclasses.replace(SPACE, split=split)
    for split in ("deep", "dense", "bnfree", "search"):
        space = splits.split_space(SPACE, split)
        assert (space.split, space.widths, space.image_size) == (split, (8,), 8)
        assert (space.num_cells, space.max_steps, space.max_nodes) == (None, None, None)
    with pytest.raises(
        ValueError, match="^split is 'depe', expected one of train, val, test, wide,"
    ):
        splits.split_space(SPACE, "depe")


def test_architectures_of_splits():
    plans = list(splits.split_plans(SPACE, "deep", 3, seed=4))
    space = splits.split_space(SPACE, "deep")
    assert [index for index, _ in plans] == [0, 1, 2]
    for index, plan in plans:
        assert plan.architecture == sample_architecture(space, 4, index)
        assert plan.architecture.num_cells >= 10
        assert (plan.image_size, plan.num_classes) == (8, 10)
    predefined = [plan.architecture for _, plan in splits.split_plans(SPACE, "predefined", 9, 0)]
    assert predefined == [ResNet((3, 4, 6, 3)), VIT]


def test_plans_of_a_split_are_for_the_images_of_the_space():
    grey = dataclasses.replace(SPACE, num_channels=1)
    ((_, plan),) = splits.split_plans(grey, "test", 1, seed=0)
    assert plan.input_shape == (SPACE.image_size, SPACE.image_size, 1)


def test_opened_splits():
    config = ExperimentConfig.from_dict({"space": dataclasses.asdict(SPACE)})
    opened = splits.open_splits(config, (("test", 2), ("predefined", 5), ("wide", None)), 5)
    # 100 is the published number of the wide one.
    names = [(split.name, split.num_architectures) for split in opened]
    assert names == [("test", 2), ("predefined", 5), ("wide", 100)]
    plans = dict(opened[0].architectures)
    assert {index: plan.architecture for index, plan in plans.items()} == {
        index: sample_architecture(dataclasses.replace(SPACE, split="test"), 5, index)
        for index in (0, 1)
    }


@pytest.mark.parametrize("with_random", [True, False])
def test_reports(tmp_path, with_random):
    predictor, engine, params = parts()
    evaluator = Evaluator(predictor, engine, EvaluationImages(dataset(), "test", 64, 100))
    opened = [
        ArchitectureSplit(name, n, enumerate(PLANS[:n])) for name, n in (("test", 2), ("deep", 1))
    ]
    output = io.StringIO()
    summaries = report_splits(
        evaluate_splits(evaluator, params, opened, 5 if with_random else None),
        "digits, test images, seed 5",
        tmp_path / "evaluation",
        console=rich.console.Console(file=output, width=120),
    )
    random_fields = {
        f"random_{metric}_{value}"
        for metric in ("top1", "top5")
        for value in ("mean", "standard_error")
    }
    fields = {"split", "num_architectures", "top1_mean", "top1_standard_error", "top1_best"}
    fields |= {"top5_mean", "top5_standard_error"} | (random_fields if with_random else set())
    for summary, num in zip(summaries, (2, 1), strict=True):
        path = tmp_path / "evaluation" / f"{summary.split}.json"
        written = json.loads(path.read_text())
        assert set(written) == fields
        assert written["num_architectures"] == num
        lines = path.with_suffix(".jsonl").read_text().splitlines()
        results = [json.loads(line) for line in lines]
        assert summary.metrics["top1"].mean == pytest.approx(np.mean([r["top1"] for r in results]))
        assert written["top1_mean"] == summary.metrics["top1"].mean
        assert written["top1_best"] == max(r["top1"] for r in results)
        assert all((r["top5_random"] is not None) == with_random for r in results)
        top1 = summary.metrics["top1"]
        mean = f"{100 * top1.mean:.1f} +- {100 * top1.standard_error:.1f}"
        assert f"{summary.split} " in output.getvalue() and mean in output.getvalue()
    assert "digits, test images, seed 5" in output.getvalue()
    png = (tmp_path / "evaluation" / "splits.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 5000
    assert not list((tmp_path / "evaluation").glob("*.tmp"))


def test_reports_need_no_network(tmp_path, monkeypatch):
    """What is shown follows from the results; nothing is written without a folder."""
    monkeypatch.chdir(tmp_path)
    console = rich.console.Console(file=io.StringIO(), width=120)
    measured = [(ArchitectureSplit("deep", 2, ()), make_results([0.5, 0.75]))]
    summaries = report_splits(measured, "stars", lists_architectures=True, console=console)
    assert summaries == [summarize("deep", make_results([0.5, 0.75]))]
    text = console.file.getvalue()
    assert "deep/0: 10 nodes, 100 parameters, top-1 50.00%, top-5 90.00%\n" in text
    assert "62.5 +- 12.5" in text and "stars" in text
    assert not list(tmp_path.iterdir())
    (result,) = make_results([0.5], [0.1])
    assert describe_result("deep", result).endswith("; random (He) top-1 10.00%, top-5 50.00%")


def test_reports_of_errors(tmp_path):
    """Less is better, and the numbers are no shares."""

    class Distance(Classification):
        metric_labels = {"distance": "distance, px", "near": "within 1 px %"}
        lower_is_better = True

    values = [{"distance": 12.5, "near": 0.25}, {"distance": 2.5, "near": 0.75}]
    results = [ArchitectureResult(i, 10, 100, metrics) for i, metrics in enumerate(values)]
    console = rich.console.Console(file=io.StringIO(), width=120)
    measured = [(ArchitectureSplit("deep", 2, ()), results)]
    (summary,) = report_splits(measured, "stars", tmp_path, True, console, Distance())
    assert summary.best == 2.5
    assert json.loads((tmp_path / "deep.json").read_text())["distance_best"] == 2.5
    assert (tmp_path / "splits.png").exists()
    text = console.file.getvalue()
    assert "deep/0: 10 nodes, 100 parameters, distance, px 12.5, within 1 px 25.00%\n" in text
    # A mean of 7.5 with the error 10 / sqrt(2) / sqrt(2), and of 50 with 50 / 2.
    for number in ("7.5 +- 5 ", "50.0 +- 25.0", " 2.5 ", "predicted distance, px"):
        assert number in text


def test_a_split_of_images_that_is_not_there():
    with pytest.raises(ValueError, match=r"^split is 'tests' \(did you mean 'test'\?\), expected"):
        EvaluationImages(dataset(), "tests")


def test_batches_count_each_image_once():
    images = EvaluationImages(dataset(), "test", 64, 100)
    counted = [int(batch.counted_mask.sum()) for batch in images.batches]
    assert (images.batch_size, counted) == (64, [64, 36])
    assert all(len(batch.images) == 64 for batch in images.batches)
    # Fewer images than a batch are one batch.
    few = EvaluationImages(dataset(), "test", 1000)
    assert (few.batch_size, len(few.batches)) == (360, 1)


def test_mean_and_standard_error_by_hand():
    mean, error = mean_and_standard_error([0.5, 0.7, 0.9])
    assert mean == pytest.approx(0.7) and error == pytest.approx(0.2 / np.sqrt(3))
    assert mean_and_standard_error([0.3]) == (0.3, 0.0)


def test_bars_by_hand(monkeypatch):
    figures = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *_, **__: figures.append(self)
    )
    summaries = [
        summarize("test", make_results([0.5, 0.7], [0.1, 0.3])),
        summarize("deep", make_results([0.25, 0.25], [0.1, 0.3])),
    ]
    plot_summaries(summaries, "unused.png")
    plot_summaries([summarize("test", make_results([0.5]))], "unused.png")
    both, alone = (figure.axes[0] for figure in figures)
    assert [bar.get_height() for bar in both.patches] == pytest.approx([60, 25, 20, 20])
    assert [text.get_text() for text in both.get_xticklabels()] == ["test", "deep"]
    assert [text.get_text() for text in both.get_legend().get_texts()] == [
        "predicted",
        "random (He)",
    ]
    assert both.get_ylabel() == "top-1 %"
    assert [bar.get_height() for bar in alone.patches] == [50]
