"""The config of a training run, as frozen dataclasses.

An `ExperimentConfig` is built from a nested mapping (which a config file returns, or the JSON in a
checkpoint) and validated. Every checkpoint holds it beside the parameters, so that a checkpoint
alone suffices to rebuild its GHN. The published values are in docs/method.md, 'Training protocol'.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from ghn_jax.configuration import limits
from ghn_jax.configuration.conversion import build_dataclass, describe_fields, to_dictionary
from ghn_jax.configuration.validation import (
    check_choice,
    check_count,
    check_positive_int,
    describe_value,
    suggest,
)
from ghn_jax.engine.blockwise import COMPUTE_DTYPES
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.sampling import CurriculumConfig
from ghn_jax.sampling.space import SPLITS, SpaceConfig
from ghn_jax.tasks import TASKS, TaskConfig
from ghn_jax.training.update_rules import SCHEDULES, UPDATE_RULES

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "OptimizerConfig",
    "TrainingConfig",
    "describe_fields",
]

PREDEFINED_SPLIT = "predefined"
"""The split that holds ResNet-50 and the ViT; it is listed, not drawn."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images the target networks see.

    Attributes:
        name: name of the dataset, for example digits, cifar10 or imagenet2012.
        data_dir: folder where the prepared dataset lies; None is the dataset library's default.
        batch_size: number of images in each training batch.
        image_size: height and width, in pixels, to which images are resized as they are read; None
            is the set's own size. It has to be that of the space of architectures.
        num_channels: channels of the images, as of the space of architectures; the one of grey
            images is repeated.
    """

    name: str = "cifar10"
    data_dir: str | None = None
    batch_size: int = 64
    image_size: int | None = None
    num_channels: int = 3

    def __post_init__(self) -> None:
        check_positive_int("batch_size", self.batch_size, limits.BATCH_SIZE)
        check_positive_int("num_channels", self.num_channels, limits.NUM_CHANNELS)
        if self.image_size is not None:
            check_positive_int("image_size", self.image_size, limits.IMAGE_SIZE)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How the GHN's parameters are updated.

    Attributes:
        name: adam (weight decay added to the gradient as L2), adamw (weight decay decoupled from
            the gradient) or sgd (L2, with momentum).
        learning_rate: the rate after warmup and before any decay.
        schedule: constant, step (multiply by decay_factor at each milestone), or cosine or linear
            (both to 0 at the last step).
        warmup_steps: number of first steps in which the rate grows linearly to its value.
        milestones: steps at which the step schedule decays the rate, ascending.
        decay_factor: factor on the rate at each milestone.
        weight_decay: coefficient of the weight decay, 0 for none.
        clip_norm: largest global norm of the gradient, before weight decay; None is no limit.
        betas: decay rates of adam's averages of the gradient and of its square.
        momentum: momentum of sgd.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    decay_factor: float = 0.1
    weight_decay: float = 1e-5
    clip_norm: float | None = 5.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_choice("name", self.name, tuple(UPDATE_RULES))
        check_choice("schedule", self.schedule, tuple(SCHEDULES))
        _check_number("learning_rate", self.learning_rate, above=0)
        check_count("warmup_steps", self.warmup_steps, limits.COUNT)
        for index, milestone in enumerate(self.milestones):
            check_positive_int(f"milestones[{index}]", milestone, limits.COUNT)
        if any(b <= a for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones is {self.milestones!r}, expected ascending steps")
        if bool(self.milestones) != (self.schedule == "step"):
            raise ValueError(
                f"milestones is {self.milestones!r} with schedule {self.schedule!r}, expected some"
                " with schedule 'step' and none with another"
            )
        _check_number("decay_factor", self.decay_factor, above=0)
        _check_number("weight_decay", self.weight_decay, least=0)
        if self.clip_norm is not None:
            _check_number("clip_norm", self.clip_norm, above=0)
        for index, beta in enumerate(self.betas):
            _check_number(f"betas[{index}]", beta, least=0, below=1)
        _check_number("momentum", self.momentum, least=0, below=1)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The training loop.

    Attributes:
        num_steps: number of updates of the GHN's parameters.
        meta_batch_size: number of architectures in each step.
        max_nodes: largest number of nodes of a step's architectures together; None is no limit.
        label_smoothing: share of the target probability spread evenly over all classes.
        norm_penalty: weight, in each architecture's loss, of the sum of the Euclidean norms of its
            predicted tensors; GHN-3 was trained with 3e-5.
        compute_dtype: what target networks compute in, float32 or bfloat16; parameters, gradients
            and losses are float32 either way.
        target_dropout: whether target networks apply their dropout while the GHN trains.
        seed: seed of initial parameters, architectures, image order and augmentation.
        checkpoint_every: number of steps between checkpoints.
        keep_checkpoints: number of most recent checkpoints kept.
        log_every: number of steps between lines of metrics.
        evaluate_every: number of steps between evaluations; None is only after the last step.
        max_skipped_share: share of architectures with a non-finite loss beyond which training
            stops.
        skip_window: number of most recent steps over which that share is taken.
        compilation_cache_dir: folder of compiled programs kept between runs; None keeps none.
        num_compile_threads: number of threads that compile ahead of need.
        num_threads: number of architectures whose networks run at the same time on each device.
        num_devices: number of devices of each process that train; None is all of them.
        num_workers: number of processes that draw architectures, and as many that prepare images,
            ahead of need; 0 does both in threads.
    """

    num_steps: int = 1000
    meta_batch_size: int = 8
    max_nodes: int | None = 2200
    label_smoothing: float = 0.0
    norm_penalty: float = 0.0
    compute_dtype: str = "float32"
    target_dropout: bool = True
    seed: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    log_every: int = 100
    evaluate_every: int | None = None
    max_skipped_share: float = 0.1
    skip_window: int = 100
    compilation_cache_dir: str | None = None
    num_compile_threads: int = 2
    num_threads: int = 2
    num_devices: int | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("num_steps", "checkpoint_every", "keep_checkpoints", "log_every"):
            check_positive_int(name, getattr(self, name), limits.COUNT)
        check_positive_int("meta_batch_size", self.meta_batch_size, limits.META_BATCH_SIZE)
        check_positive_int("skip_window", self.skip_window, limits.COUNT)
        for name in ("num_compile_threads", "num_threads"):
            check_positive_int(name, getattr(self, name), limits.NUM_PROCESSES)
        for name in ("max_nodes", "evaluate_every", "num_devices"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name), limits.COUNT)
        check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        check_count("seed", self.seed, limits.SEED)
        check_count("num_workers", self.num_workers, limits.NUM_PROCESSES)
        _check_number("label_smoothing", self.label_smoothing, least=0, below=1)
        _check_number("norm_penalty", self.norm_penalty, least=0)
        _check_number("max_skipped_share", self.max_skipped_share, least=0, most=1)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What the GHN is evaluated on.

    Attributes:
        splits: pairs (split of architectures, number of architectures) evaluated after training;
            the split predefined holds ResNet-50 and the ViT.
        image_split: images of the evaluation after training: validation or test.
        with_random: whether the evaluation after training also runs random initialisation.
        num_validation: number of architectures of the split val in evaluations during training,
            which use validation images.
        batch_size: number of images in each batch, which is also what batch norm averages over.
        max_images: largest number of images used; None is all of them.
        seed: seed of the architectures drawn.
    """

    splits: tuple[tuple[str, int], ...] = (("test", 100),)
    image_split: str = "test"
    with_random: bool = True
    num_validation: int = 20
    batch_size: int = 64
    max_images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*SPLITS, PREDEFINED_SPLIT)
        for index, (split, count) in enumerate(self.splits):
            if split not in known:
                raise ValueError(
                    f"splits[{index}] is {(split, count)!r}{suggest(split, known)}, expected a pair"
                    f" (one of {', '.join(known)}; number of architectures)"
                )
            check_positive_int(f"splits[{index}][1]", count, limits.COUNT)
        check_choice("image_split", self.image_split, ("validation", "test"))
        check_choice("with_random", self.with_random, (False, True))
        check_positive_int("num_validation", self.num_validation, limits.COUNT)
        check_positive_int("batch_size", self.batch_size, limits.BATCH_SIZE)
        if self.max_images is not None:
            check_positive_int("max_images", self.max_images, limits.COUNT)
        check_count("seed", self.seed, limits.SEED)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """A whole training run.

    Attributes:
        data: the images.
        space: the distribution over training architectures.
        ghn: the GHN.
        optimizer: the update rule.
        training: the loop.
        evaluation: the evaluations during and after training.
        architectures: folder of published or generated files (DeepNets-1M) whose architectures are
            trained on; None draws from the space.
        task: what target networks are trained for; or its name.
        curriculum: how the distribution over training architectures changes with the step.
    """

    SECTIONS: ClassVar[tuple[str, ...]] = (
        "data",
        "space",
        "ghn",
        "optimizer",
        "training",
        "evaluation",
    )

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    space: SpaceConfig = dataclasses.field(default_factory=SpaceConfig)
    ghn: GHNConfig = dataclasses.field(default_factory=GHNConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    architectures: str | None = None
    task: TaskConfig = TASKS.config("classification")
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)

    def __post_init__(self) -> None:
        try:
            self.curriculum.check(self.space)
        except ValueError as error:
            raise ValueError(f"curriculum gives space a value it cannot have: {error}") from error
        if self.architectures is not None and not self.curriculum.is_empty:
            raise ValueError(
                f"curriculum is {self.curriculum}, expected none with architectures ="
                f" {self.architectures!r}: files are read as they are"
            )
        if self.ghn.num_classes != self.space.num_classes:
            raise ValueError(
                f"ghn.num_classes is {self.ghn.num_classes}, expected {self.space.num_classes} as"
                " space.num_classes"
            )
        last = self.optimizer.warmup_steps
        schedule = self.optimizer.schedule
        if schedule in ("cosine", "linear") and last >= self.training.num_steps:
            raise ValueError(
                f"optimizer.warmup_steps is {last}, expected fewer than training.num_steps"
                f" ({self.training.num_steps}) with schedule {schedule!r}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExperimentConfig:
        """Build a config from nested mappings; what is missing keeps its default.

        Args:
            values: section -> field -> value, with lists or tuples alike.

        Returns:
            The validated config.

        Raises:
            ValueError: if a field is unknown or its value is wrong; names its dotted path,
                beginning with `config.`, as on the command line.
        """
        return build_dataclass(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries and lists that JSON can hold and `from_dict` reads."""
        dictionary: dict[str, Any] = to_dictionary(self)
        return dictionary


def _check_number(
    name: str,
    value: float,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Raise ValueError unless the value is finite and within the bounds that are given."""
    bounds = {">": above, ">=": least, "<": below, "<=": most}
    if (
        not isinstance(value, (int, float))
        or not -sys.float_info.max <= value <= sys.float_info.max
        or (above is not None and value <= above)
        or (least is not None and value < least)
        or (below is not None and value >= below)
        or (most is not None and value > most)
    ):
        wanted = " and ".join(
            f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None
        )
        raise ValueError(f"{name} is {describe_value(value)}, expected a number {wanted}")
