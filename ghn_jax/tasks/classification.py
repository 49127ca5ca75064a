"""Image classification: cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghn_jax.tasks.registry import register_task
from ghn_jax.tasks.task import Batch


@register_task("classification")
@dataclasses.dataclass(frozen=True)
class Classification:
    """Image classification with one class per image.

    Attributes:
        input_shape: Shape of an image, (S, S, C).
        num_outputs: Number of classes, K.
        label_smoothing: Share of the target distribution that is spread over all classes.

    Raises:
        ValueError: If `label_smoothing` is not in [0, 1).
    """

    input_shape: tuple[int, ...] = (32, 32, 3)
    num_outputs: int = 10
    label_smoothing: float = 0.0

    input_dtype: ClassVar[str] = "float32"
    metric_labels: ClassVar[Mapping[str, str]] = {"top1": "top-1 %", "top5": "top-5 %"}
    lower_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected 0 <= value < 1")

    def loss_fn(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """Compute the mean cross-entropy in nats: (B, K) logits -> ()."""
        return cross_entropy(outputs, batch.labels, self.label_smoothing)

    def metrics_fn(self, outputs: Any, batch: Batch) -> dict[str, np.ndarray]:
        """Return whether the class is the first guess, or among the first five: (B,) each."""
        ranks = label_ranks(outputs, batch.labels)
        return {"top1": ranks < 1, "top5": ranks < 5}


CLASSIFICATION = Classification()
"""The default task. Its sizes do not matter, since loss and metrics do not depend on them."""


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Compute the mean cross-entropy of a batch.

    Args:
        logits: (B, K) logits.
        labels: (B,) int32 classes.
        label_smoothing: Share of the target distribution that is spread over all K classes.

    Returns:
        () mean over the batch, in nats.
    """
    num_classes = logits.shape[-1]
    targets = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    targets = optax.smooth_labels(targets, label_smoothing) if label_smoothing else targets
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count how many classes a network prefers to the label.

    A class with the same logit counts as preferred, and so does every class if the label's logit is
    not a number: a network that says nothing is not right.

    Args:
        logits: (B, K) logits.
        labels: (B,) int classes.

    Returns:
        (B,) int counts, 0 if the label alone is the first guess.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    return np.sum(~(logits < own), axis=1) - np.where(np.isnan(own[:, 0]), 0, 1)
