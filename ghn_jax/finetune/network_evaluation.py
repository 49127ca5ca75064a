"""Measure one network while it trains: top-1 accuracy and batch norm's running statistics.

In: the network's state and a data set. Out: an accuracy, or new running statistics. Evaluation
images are kept in memory if they fit, since evaluations repeat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.data import Dataset, EvaluationBatches, TrainBatches
from ghn_jax.data.loader import EvaluationBatch
from ghn_jax.finetune.config import NetworkTrainingConfig
from ghn_jax.finetune.network_programs import NetworkPrograms, NetworkState
from ghn_jax.tracing.batch_stats import statistics_of_batch

_LARGEST_CACHE = 2**30  # bytes of evaluation images kept in memory
_NUM_CALIBRATION_BATCHES = 10


class NetworkEvaluator:
    """Measures states of one network.

    Args:
        programs: The network's programs.
        dataset: The images.
        training: Says how many images to use, and how many at a time.
    """

    def __init__(
        self, programs: NetworkPrograms, dataset: Dataset, training: NetworkTrainingConfig
    ) -> None:
        self._programs, self._dataset, self._training = programs, dataset, training
        self._kept: dict[str, list[EvaluationBatch]] = {}

    def accuracy(self, state: NetworkState, split: str) -> float:
        """Measure top-1 accuracy, in [0, 1], with batch norm using running statistics."""
        variables = {"params": state.params, **state.collections}
        counts = [
            (self._programs.count_correct(variables, *batch), batch.counted_mask.sum())
            for batch in self._batches(split)
        ]
        correct = sum(int(correct) for correct, _ in counts)
        return correct / sum(int(count) for _, count in counts)

    def calibrate(self, state: NetworkState, batches: TrainBatches) -> NetworkState:
        """Compute batch norm's running statistics, if there are any, from the first batches."""
        if not state.collections.get("batch_stats"):
            return state
        variables = {"params": state.params, **state.collections}
        parts = []
        for step in range(min(_NUM_CALIBRATION_BATCHES, batches.steps_per_epoch)):
            images, _ = batches.batch(step)
            zeros, ones = (
                self._programs.batch_statistics(variables, images, fill) for fill in (0.0, 1.0)
            )
            parts.append(statistics_of_batch(zeros, ones))
        stats = jax.tree.map(lambda *x: jnp.asarray(np.mean(x, axis=0)), *parts)
        return state._replace(collections={**state.collections, "batch_stats": stats})

    def _batches(self, split: str) -> Iterable[EvaluationBatch]:
        if split in self._kept:
            return self._kept[split]
        training, dataset = self._training, self._dataset
        part = dataset.split(split)
        most = training.max_validation_images if split == "validation" else None
        if most is not None and len(part) > most:
            # Spread evenly over the split, which may be sorted by class.
            positions = np.linspace(0, len(part) - 1, most).astype(np.int64)
            dataset = dataclasses.replace(dataset, validation=part.subset(positions))
        batch_size = min(training.evaluation_batch_size, len(dataset.split(split)))
        batches = EvaluationBatches(dataset, split, batch_size)
        num_bytes = len(batches) * batch_size * dataset.image_size**2 * 3 * 4
        if num_bytes > _LARGEST_CACHE:
            return batches
        self._kept[split] = list(batches)
        return self._kept[split]
