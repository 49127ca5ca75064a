"""The interface through which the engine, evaluation and training use a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax

from ghn_jax.arrays import Array


class Batch(NamedTuple):
    """A batch of examples.

    Attributes:
        images: (B, S, S, C) normalised images.
        labels: (B,) int32 classes, or whatever else (B, ...) the data set provides.
    """

    images: Array
    labels: Array


class Task(Protocol):
    """What target networks are trained for; a frozen dataclass, so that programs can be shared.

    For every task, networks end in a linear layer; the task decides what its outputs mean.
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an image, (S, S, C), for which architectures are lowered."""
        ...

    @property
    def input_dtype(self) -> str:
        """The dtype of images as networks take them: "float32", what data sets give."""
        ...

    @property
    def num_outputs(self) -> int:
        """Number of outputs K, of the architectures' last layer and of the GHN's class head."""
        ...

    @property
    def metric_labels(self) -> Mapping[str, str]:
        """Labels of the metrics in reports, the main one first; "... %" marks a share in 0..1."""
        ...

    @property
    def lower_is_better(self) -> bool:
        """Whether the first metric is an error, so that the best network has the smallest."""
        ...

    def loss_fn(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Compute the loss that training minimises.

        Args:
            outputs: (B, K) float32 outputs, traced.
            batch: The examples that were the networks' input, traced.

        Returns:
            The mean over the batch, ().
        """
        ...

    def metrics_fn(self, outputs: Array, batch: Batch) -> Mapping[str, Array]:
        """Compute the metrics of every image, so that evaluation can leave images out.

        Args:
            outputs: (B, K) outputs, numpy.
            batch: The examples that were the network's input, numpy.

        Returns:
            (B,) values of each metric, of which reports give the mean over all images.
        """
        ...
