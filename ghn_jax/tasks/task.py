"""What a task is to the engine, to evaluation and to training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax

from ghn_jax.arrays import Array


class Batch(NamedTuple):
    """What a network is trained on or measured on.

    Attributes:
        images: (B, S, S, C), normalised.
        labels: (B,) int32 classes; or (B, ...) what else the data set has.
    """

    images: Array
    labels: Array


class Task(Protocol):
    """What target networks are for: a frozen dataclass, so that programs can be shared.

    Whatever the task, networks end in a linear layer; what its outputs mean is the task's to say.
    """

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(S, S, C) of an image: architectures are lowered for it."""
        ...

    @property
    def input_dtype(self) -> str:
        """The dtype of images as networks take them: "float32", what data sets give."""
        ...

    @property
    def num_outputs(self) -> int:
        """Width K of the output: the last layer of architectures, and of the GHN's class head."""
        ...

    @property
    def metric_labels(self) -> Mapping[str, str]:
        """What reports call the metrics, the one that counts first; "... %" is of shares, 0..1."""
        ...

    @property
    def lower_is_better(self) -> bool:
        """Whether the first metric is an error: the best network is that with the smallest."""
        ...

    def loss_fn(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """What training minimises.

        Args:
            outputs: (B, K) float32, traced.
            batch: What they are the outputs for, traced.

        Returns:
            () the mean over the batch.
        """
        ...

    def metrics_fn(self, outputs: Array, batch: Batch) -> Mapping[str, Array]:
        """What evaluation reports, for each image, so that any of them can be left out.

        Args:
            outputs: (B, K) numpy.
            batch: What they are the outputs for, numpy.

        Returns:
            (B,) of each metric; reports give the mean over all images.
        """
        ...
