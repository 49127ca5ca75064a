"""Measure parameters of many architectures: top-1 and top-5, mean and standard error of a split.

In: a GHN's parameters, plans and images. Out: numbers; `ghn_jax.evaluation.report` shows and writes
them. Batch norm uses the statistics of test batches (spec section 4). Nothing is compiled per
architecture: networks run on the training engine's programs.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ghn_jax.data import Dataset, EvaluationBatches
from ghn_jax.data.loader import EvaluationBatch
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.initialization import initialize_randomly
from ghn_jax.targets.plan import Plan

PyTree = Any
Candidate = tuple[int, Plan] | tuple[int, Plan, ArchGraph]
"""Index and plan of an architecture, and its graph where that is a file's, not the plan's own."""
_CHUNK = 50  # architectures whose programs are compiled together


class ArchitectureSplit(NamedTuple):
    """A split to evaluate on.

    Attributes:
        name: Its name.
        num_architectures: How many it has at the most.
        architectures: To be read once.
    """

    name: str
    num_architectures: int
    architectures: Iterable[Candidate]


@dataclasses.dataclass(frozen=True)
class ArchitectureResult:
    """Accuracy of one architecture.

    Attributes:
        index: Of the architecture in its split.
        num_nodes: Of its graph.
        num_parameters: Of the network.
        top1: Share of images whose label is the network's first guess, 0..1.
        top5: Share of images whose label is among the first five, 0..1.
        top1_random: top1 with random (He) parameters; None if not evaluated.
        top5_random: top5 with random parameters; None if not evaluated.
    """

    index: int
    num_nodes: int
    num_parameters: int
    top1: float
    top5: float
    top1_random: float | None = None
    top5_random: float | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """Means and standard errors over the architectures of a split, 0..1."""

    split: str
    num_architectures: int
    top1_mean: float
    top1_standard_error: float
    top1_best: float
    top5_mean: float
    top5_standard_error: float
    random_top1_mean: float | None = None
    random_top1_standard_error: float | None = None
    random_top5_mean: float | None = None
    random_top5_standard_error: float | None = None


class EvaluationImages:
    """The images that count of a split, in full batches.

    Args:
        dataset: Its images.
        split: "validation" or "test".
        batch_size: Images per batch, over which batch norm averages.
        max_images: Most images that count; None is all.

    Attributes:
        batches: In the order of the split; the last one is full, whatever part of it counts.
        batch_size: Images per batch: all images, where there are fewer than asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str = "test",
        batch_size: int = 64,
        max_images: int | None = None,
    ) -> None:
        # Fewer images than a batch are one smaller batch: none would be averaged over twice.
        self.batch_size = min(batch_size, len(dataset.split(split)))
        all_batches = EvaluationBatches(dataset, split, self.batch_size)
        num_images = min(len(all_batches.split), max_images or len(all_batches.split))
        self.batches: list[EvaluationBatch] = []
        for index in range(math.ceil(num_images / self.batch_size)):
            batch = all_batches.batch(index)
            is_within = index * self.batch_size + np.arange(self.batch_size) < num_images
            self.batches.append(batch._replace(counted_mask=batch.counted_mask & is_within))


class Evaluator:
    """Evaluates architectures on one set of images.

    Args:
        predictor: Predicts the networks' parameters.
        engine: Runs the networks.
        images: What they are run on.
        num_threads: How many architectures are evaluated at the same time.
    """

    def __init__(
        self,
        predictor: Predictor,
        engine: BlockwiseEngine,
        images: EvaluationImages,
        num_threads: int = 1,
    ) -> None:
        self._predictor, self._engine = predictor, engine
        self._images, self._num_threads = images, num_threads

    def evaluate(
        self,
        ghn_params: PyTree,
        architectures: Iterable[Candidate],
        random_seed: int | None = None,
    ) -> Iterator[ArchitectureResult]:
        """Predict the parameters of each architecture and measure its accuracy.

        Args:
            ghn_params: The hypernetwork's parameters.
            architectures: The candidates.
            random_seed: Also evaluate He initialisation drawn from this seed and the index; None
                does not.

        Yields:
            A result per architecture, in order.
        """
        remaining = iter(architectures)
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="evaluate") as pool:
            while chunk := list(itertools.islice(remaining, _CHUNK)):
                # All that a chunk needs compiles at once, in parallel.
                plans = [plan for _, plan, *_ in chunk]
                self._engine.compile_ahead(plans, self._images.batch_size, with_gradients=False)
                evaluate_one = functools.partial(self._evaluate_one, ghn_params, random_seed)
                yield from pool.map(evaluate_one, chunk)

    def _evaluate_one(self, ghn_params, random_seed, candidate) -> ArchitectureResult:
        index, plan, *stored = candidate
        graph = stored[0] if stored else build_graph(plan, self._predictor.config.virtual_edges)
        top1, top5 = self.accuracy(plan, self._predict(ghn_params, graph))
        random_accuracy: tuple[float | None, float | None] = (None, None)
        if random_seed is not None:
            sequence = np.random.SeedSequence(random_seed, spawn_key=(index,))
            params = initialize_randomly(plan, np.random.default_rng(sequence))
            random_accuracy = self.accuracy(plan, params)
        return ArchitectureResult(
            index, graph.num_nodes, plan.num_parameters, top1, top5, *random_accuracy
        )

    def accuracy(self, plan: Plan, params: Sequence[Any]) -> tuple[float, float]:
        """Top-1 and top-5 of a network over the images, each counted once."""
        pending = [
            (batch, self._engine.logits(plan, params, batch.images))
            for batch in self._images.batches
        ]
        hits, total = np.zeros(2), 0
        for batch, logits in pending:
            ranks = label_ranks(np.asarray(logits), batch.labels)[batch.counted_mask]
            hits += (np.sum(ranks < 1), np.sum(ranks < 5))
            total += len(ranks)
        return hits[0] / total, hits[1] / total

    def _predict(self, ghn_params: PyTree, graph: ArchGraph) -> list[np.ndarray]:
        prepared = self._predictor.prepare([graph])
        return self._predictor.predict(ghn_params, prepared)[0]


def evaluate_splits(
    evaluator: Evaluator,
    ghn_params: PyTree,
    splits: Iterable[ArchitectureSplit],
    random_seed: int | None = None,
) -> Iterator[tuple[ArchitectureSplit, Iterator[ArchitectureResult]]]:
    """Evaluate splits one after the other, each as its results are asked for.

    Args:
        evaluator: Predicts, runs and measures.
        ghn_params: The hypernetwork's parameters.
        splits: The architectures.
        random_seed: As `Evaluator.evaluate` takes it.

    Yields:
        Each split and its results.
    """
    for split in splits:
        yield split, evaluator.evaluate(ghn_params, split.architectures, random_seed)


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes a network prefers to the label.

    A class with the same logit counts as preferred, and so does every class where the label's logit
    is not a number: a network that says nothing is not right.

    Args:
        logits: (B, K).
        labels: (B,) int.

    Returns:
        (B,) int, 0 where the label is the only first guess.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    return np.sum(~(logits < own), axis=1) - np.where(np.isnan(own[:, 0]), 0, 1)


def summarize(split: str, results: Sequence[ArchitectureResult]) -> Summary:
    """Mean and standard error of a split; the error is 0 for a single architecture.

    Args:
        split: Its name.
        results: At least one.

    Returns:
        The summary.
    """
    if not results:
        raise ValueError("results is empty, expected at least one architecture")
    columns = {}
    for prefix, suffix in (("", ""), ("random_", "_random")):
        for metric in ("top1", "top5"):
            values = [getattr(result, metric + suffix) for result in results]
            if None not in values:
                mean, error = mean_and_standard_error(values)
                columns[f"{prefix}{metric}_mean"] = mean
                columns[f"{prefix}{metric}_standard_error"] = error
    best = max(result.top1 for result in results)
    return Summary(split=split, num_architectures=len(results), top1_best=best, **columns)


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error: the deviation with n - 1, over sqrt(n); 0 for one value."""
    array = np.asarray(values, np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else 0.0
    return float(array.mean()), float(error)
