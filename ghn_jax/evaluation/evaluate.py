"""Measure parameters of many architectures: metrics of a task, mean and error of a split.

In: a GHN's parameters, plans and images. Out: numbers; `ghn_jax.evaluation.report` shows and writes
them. Batch norm uses the statistics of test batches (docs/method.md, 'Evaluation protocol').
Nothing is compiled per architecture: networks run on the training engine's programs.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from ghn_jax.arrays import PyTree
from ghn_jax.data import Dataset, EvaluationBatches
from ghn_jax.data.loader import EvaluationBatch
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.initialization import initialize_randomly
from ghn_jax.targets.plan import Plan
from ghn_jax.tasks import CLASSIFICATION, Batch

Candidate = tuple[int, Plan] | tuple[int, Plan, ArchGraph]
"""Index and plan of an architecture, and its graph if that comes from a file."""
MetricsFn = Callable[[Any, Batch], Mapping[str, Any]]
_CHUNK = 50  # architectures whose programs are compiled together


class ArchitectureSplit(NamedTuple):
    """A split to evaluate on.

    Attributes:
        name: Name of the split.
        num_architectures: Maximum number of architectures.
        architectures: The architectures, which can be iterated over once.
    """

    name: str
    num_architectures: int
    architectures: Iterable[Candidate]


@dataclasses.dataclass(frozen=True)
class ArchitectureResult:
    """How good the parameters of one architecture are.

    Attributes:
        index: The architecture's index in its split.
        num_nodes: Number of nodes of its graph.
        num_parameters: Number of parameters of the network.
        metrics: Mean over the images of each of the task's metrics, the main one first; for
            classification top1 and top5, in 0..1.
        random: The same metrics with random (He) parameters; None if not evaluated.
    """

    index: int
    num_nodes: int
    num_parameters: int
    metrics: Mapping[str, float]
    random: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return flat fields for a line of JSON: `top1`, ..., `top1_random`, ..."""
        fields = dataclasses.asdict(self)
        metrics, random = fields.pop("metrics"), fields.pop("random")
        fields |= metrics
        return fields | {f"{name}_random": random and random[name] for name in metrics}


class Mean(NamedTuple):
    """Mean over architectures, and its standard error."""

    mean: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """How good the parameters of a split's architectures are.

    Attributes:
        split: Name of the split.
        num_architectures: Number of architectures that were evaluated.
        metrics: Mean and standard error of each metric over the architectures.
        best: The best architecture's value of the main metric.
        random: The same as `metrics`, with random parameters; None if not evaluated.
    """

    split: str
    num_architectures: int
    metrics: Mapping[str, Mean]
    best: float
    random: Mapping[str, Mean] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return flat fields for JSON: `top1_mean`, `top1_standard_error`, `top1_best`, ..."""
        fields: dict[str, Any] = {"split": self.split, "num_architectures": self.num_architectures}
        first = next(iter(self.metrics))
        fields[f"{first}_best"] = self.best
        for prefix, means in (("", self.metrics), ("random_", self.random or {})):
            for name, mean in means.items():
                fields[f"{prefix}{name}_mean"] = mean.mean
                fields[f"{prefix}{name}_standard_error"] = mean.standard_error
        return fields


class EvaluationImages:
    """The images of a split to evaluate on, in full batches.

    Args:
        dataset: The data set.
        split: "validation" or "test".
        batch_size: Number of images per batch, over which batch norm averages.
        max_images: Maximum number of images that count; None means all.

    Attributes:
        batches: The batches in the order of the split. The last one is full, too, even if only a
            part of it counts.
        batch_size: Number of images per batch; fewer than requested if the split is smaller.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str = "test",
        batch_size: int = 64,
        max_images: int | None = None,
    ) -> None:
        # A split smaller than a batch becomes one smaller batch, so that no image is used twice.
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
        images: The images that the networks run on.
        metrics_fn: Computes the metrics, see `Task`.
        num_threads: Number of architectures that are evaluated at the same time.
    """

    def __init__(
        self,
        predictor: Predictor,
        engine: BlockwiseEngine,
        images: EvaluationImages,
        metrics_fn: MetricsFn = CLASSIFICATION.metrics_fn,
        num_threads: int = 1,
    ) -> None:
        self._predictor, self._engine = predictor, engine
        self._images, self._num_threads = images, num_threads
        self._metrics_fn = metrics_fn

    def evaluate(
        self,
        ghn_params: PyTree,
        architectures: Iterable[Candidate],
        random_seed: int | None = None,
    ) -> Iterator[ArchitectureResult]:
        """Predict the parameters of each architecture and measure how good they are.

        Args:
            ghn_params: The hypernetwork's parameters.
            architectures: The candidates.
            random_seed: Seed from which, together with the index, He initialisation is drawn and
                evaluated, too; None does not evaluate it.

        Yields:
            One result per architecture, in order.
        """
        remaining = iter(architectures)
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="evaluate") as pool:
            while chunk := list(itertools.islice(remaining, _CHUNK)):
                # Everything a chunk needs compiles in parallel.
                plans = [plan for _, plan, *_ in chunk]
                self._engine.compile_ahead(plans, self._images.batch_size, with_gradients=False)
                evaluate_one = functools.partial(self._evaluate_one, ghn_params, random_seed)
                yield from pool.map(evaluate_one, chunk)

    def _evaluate_one(
        self, ghn_params: PyTree, random_seed: int | None, candidate: Candidate
    ) -> ArchitectureResult:
        index, plan, *stored = candidate
        graph = stored[0] if stored else build_graph(plan, self._predictor.config.virtual_edges)
        metrics = self.measure(plan, self._predict(ghn_params, graph))
        random = None
        if random_seed is not None:
            sequence = np.random.SeedSequence(random_seed, spawn_key=(index,))
            params = initialize_randomly(plan, np.random.default_rng(sequence))
            random = self.measure(plan, params)
        return ArchitectureResult(index, graph.num_nodes, plan.num_parameters, metrics, random)

    def measure(self, plan: Plan, params: Sequence[Any]) -> dict[str, float]:
        """Return the mean of each metric over the images, counting each image once."""
        pending = [
            (batch, self._engine.logits(plan, params, batch.images))
            for batch in self._images.batches
        ]
        parts: dict[str, list[np.ndarray]] = {}
        for batch, outputs in pending:
            pair = Batch(batch.images, batch.labels)
            for name, values in self._metrics_fn(np.asarray(outputs), pair).items():
                parts.setdefault(name, []).append(np.asarray(values)[batch.counted_mask])
        return {name: float(np.concatenate(values).mean()) for name, values in parts.items()}

    def _predict(self, ghn_params: PyTree, graph: ArchGraph) -> list[np.ndarray]:
        prepared = self._predictor.prepare([graph])
        return self._predictor.predict(ghn_params, prepared)[0]


class Journal(Protocol):
    """Keeps the results of an evaluation, see `ghn_jax.evaluation.journal`."""

    def resume(
        self,
        split: ArchitectureSplit,
        evaluate: Callable[[Iterable[Candidate]], Iterator[ArchitectureResult]],
    ) -> Iterator[ArchitectureResult]:
        """Yield the results of a split; only those that are not there yet are evaluated."""
        ...


def evaluate_splits(
    evaluator: Evaluator,
    ghn_params: PyTree,
    splits: Iterable[ArchitectureSplit],
    random_seed: int | None = None,
    journal: Journal | None = None,
) -> Iterator[tuple[ArchitectureSplit, Iterator[ArchitectureResult]]]:
    """Evaluate splits one after the other, lazily.

    Args:
        evaluator: The evaluator.
        ghn_params: The hypernetwork's parameters.
        splits: The splits of architectures.
        random_seed: Seed of random parameters, see `Evaluator.evaluate`.
        journal: Keeps the results and has those of an evaluation that was stopped; None evaluates
            everything and keeps nothing.

    Yields:
        Each split and its results.
    """

    def evaluate(architectures: Iterable[Candidate]) -> Iterator[ArchitectureResult]:
        return evaluator.evaluate(ghn_params, architectures, random_seed)

    for split in splits:
        if journal is None:
            yield split, evaluate(split.architectures)
        else:
            yield split, journal.resume(split, evaluate)


def summarize(
    split: str, results: Sequence[ArchitectureResult], lower_is_better: bool = False
) -> Summary:
    """Summarize the results of a split; the standard error of a single architecture is 0.

    Args:
        split: Name of the split.
        results: The results, at least one.
        lower_is_better: Whether the main metric is an error, see `Task`.

    Returns:
        The summary.

    Raises:
        ValueError: If `results` is empty.
    """
    if not results:
        raise ValueError("results is empty, expected at least one architecture")
    first = next(iter(results[0].metrics))
    random = [result.random for result in results if result.random is not None]
    best = min if lower_is_better else max
    return Summary(
        split,
        len(results),
        _means([result.metrics for result in results]),
        best(result.metrics[first] for result in results),
        _means(random) if len(random) == len(results) else None,
    )


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    return {name: mean_and_standard_error([m[name] for m in metrics]) for name in metrics[0]}


def mean_and_standard_error(values: Sequence[float]) -> Mean:
    """Return mean and standard error, std (with n - 1) / sqrt(n), which is 0 for one value."""
    array = np.asarray(values, np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else 0.0
    return Mean(float(array.mean()), float(error))
