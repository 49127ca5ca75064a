"""Configs for training a single network, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from ghn_jax.configuration import limits
from ghn_jax.configuration.conversion import build_dataclass, to_dictionary
from ghn_jax.configuration.validation import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_positive_int,
    check_share,
)
from ghn_jax.training.config import DataConfig, OptimizerConfig

INITS = ("random", "ghn", "ghn-noise", "ghn-orth")
CLASSIFIERS = ("auto", "predicted", "random")


def _check_distinct(name: str, values: tuple[Any, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} is {values!r}, expected each once")


@dataclasses.dataclass(frozen=True)
class NetworkTrainingConfig:
    """How one network is trained.

    Attributes:
        num_epochs: number of passes over the training images.
        num_steps: number of updates, instead of whole epochs; None trains for `num_epochs`.
        seed: seed for the order of the images, their augmentation and dropout.
        label_smoothing: share of the target probability spread evenly over all classes.
        image_sizes: heights of images, in pixels, from which each step draws one (mixed image
            sizes); empty keeps the data set's size. The network's parameters must not depend on it.
        cutout: side, in pixels, of the square that is blanked in each training image; 0 disables.
        drop_path: probability, in the last epoch, of skipping an operation in a cell for an image;
            it grows linearly from 0. Only for networks of the architecture space.
        auxiliary_weight: weight of the auxiliary head's loss; 0 means no such head. Only for
            networks of the architecture space.
        calibrate: whether to compute batch norm's running statistics from training images before
            the first step; otherwise they start at mean 0 and variance 1.
        evaluate_every: number of steps between evaluations on validation images; None evaluates
            only before the first and after the last step.
        log_every: number of steps between lines of metrics.
        checkpoint_every: number of steps between checkpoints; None saves only after the last step.
        keep_checkpoints: number of most recent checkpoints to keep.
        evaluation_batch_size: number of images in each evaluation batch.
        max_validation_images: largest number of validation images to use, spread evenly; None uses
            all.
    """

    num_epochs: int = 50
    num_steps: int | None = None
    seed: int = 0
    label_smoothing: float = 0.0
    image_sizes: tuple[int, ...] = ()
    cutout: int = 0
    drop_path: float = 0.0
    auxiliary_weight: float = 0.0
    calibrate: bool = True
    evaluate_every: int | None = None
    log_every: int = 50
    checkpoint_every: int | None = None
    keep_checkpoints: int = 1
    evaluation_batch_size: int = 100
    max_validation_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_epochs", "log_every", "keep_checkpoints"):
            check_positive_int(name, getattr(self, name), limits.COUNT)
        check_positive_int("evaluation_batch_size", self.evaluation_batch_size, limits.BATCH_SIZE)
        for name in ("num_steps", "evaluate_every", "checkpoint_every", "max_validation_images"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name), limits.COUNT)
        for index, size in enumerate(self.image_sizes):
            check_positive_int(f"image_sizes[{index}]", size, limits.IMAGE_SIZE)
        check_count("seed", self.seed, limits.SEED)
        check_count("cutout", self.cutout, limits.IMAGE_SIZE)
        for name in ("label_smoothing", "drop_path"):
            check_share(name, getattr(self, name))
        check_number("auxiliary_weight", self.auxiliary_weight)
        check_flag("calibrate", self.calibrate)


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """A complete run that trains one network.

    Attributes:
        data: the images.
        optimizer: the update rule for the network's parameters.
        training: the training loop.
    """

    SECTIONS: ClassVar[tuple[str, ...]] = ("data", "optimizer", "training")

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: NetworkTrainingConfig = dataclasses.field(default_factory=NetworkTrainingConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Build a config from nested mappings; a ValueError names a bad field by its path."""
        return build_dataclass(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries and lists, ready for JSON and for `from_dict`."""
        dictionary: dict[str, Any] = to_dictionary(self)
        return dictionary


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(NetworkConfig):
    """A comparison of initialisations, each fine-tuned several times and tabulated.

    Attributes:
        data: the images.
        optimizer: the update rule; its learning rate is used if `learning_rates` is empty.
        training: the training loop.
        num_shots: number of training images of each class; None uses all of them.
        learning_rates: rates to try, of which each initialisation gets the one that is best on
            validation images; empty tries `optimizer.learning_rate` only.
        num_seeds: number of repetitions, with seeds training.seed, training.seed + 1, ... Each
            draws a new random initialisation, noise, classifier and order of images.
        inits: initialisations to compare: random, ghn, ghn-noise (GHN with noise), ghn-orth (with
            noise, then made orthogonal).
        noise_beta: scale of the noise in ghn-noise and ghn-orth.
        first_layer: number of the first layer to post-process, from 1; None starts with the second
            half of the layers.
        classifier: predicted, random, or auto (random if the GHN has another number of classes).
    """

    num_shots: int | None = None
    learning_rates: tuple[float, ...] = ()
    num_seeds: int = 3
    inits: tuple[str, ...] = INITS
    noise_beta: float = 3e-5
    first_layer: int | None = None
    classifier: str = "random"

    def __post_init__(self) -> None:
        if self.num_shots is not None:
            check_positive_int("num_shots", self.num_shots, limits.COUNT)
        for index, rate in enumerate(self.learning_rates):
            if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
                raise ValueError(f"learning_rates[{index}] is {rate!r}, expected a number > 0")
        _check_distinct("learning_rates", self.learning_rates)
        check_positive_int("num_seeds", self.num_seeds, limits.COUNT)
        if self.training.seed + self.num_seeds - 1 > limits.SEED:
            raise ValueError(
                f"num_seeds is {self.num_seeds} with training.seed {self.training.seed}, expected"
                f" seeds of at most {limits.SEED}"
            )
        for index, init in enumerate(self.inits):
            check_choice(f"inits[{index}]", init, INITS)
        _check_distinct("inits", self.inits)
        if not self.inits:
            raise ValueError(f"inits is (), expected some of {', '.join(INITS)}")
        check_number("noise_beta", self.noise_beta)
        if self.first_layer is not None:
            check_positive_int("first_layer", self.first_layer)
        check_choice("classifier", self.classifier, CLASSIFIERS)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to try."""
        return self.learning_rates or (self.optimizer.learning_rate,)
