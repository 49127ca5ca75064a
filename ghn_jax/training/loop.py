"""Train a GHN: draw architectures, predict their parameters, differentiate their losses back.

Everything random follows from the seed and the position in the streams. Both are checkpointed, so a
run resumed after any interruption continues bit for bit. If there are several processes, the first
one writes metrics, and all take part in checkpoints, in one folder that all of them can access.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import NamedTuple, Unpack

import jax
import numpy as np

from ghn_jax.configuration.validation import check_count
from ghn_jax.hypernetworks import parameter_shapes
from ghn_jax.parallel.processes import replicate
from ghn_jax.tasks import Batch
from ghn_jax.training.checkpoints import CheckpointStore, reading_counters
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.meta_batches import MetaBatch
from ghn_jax.training.run_loop import RunReport, RunSchedule, run_training
from ghn_jax.training.skipping import SkipRule
from ghn_jax.training.trainer import Parts, StepResult, Trainer, TrainState

EvaluateFn = Callable[[Trainer, TrainState], Mapping[str, float]]

# Settings that change neither the parameters, except for the order in which gradients are summed,
# nor the meaning of the checkpoint's counters. The number of steps moves the end of a cosine
# or linear schedule, but extending a run is the user's decision.
MAY_CHANGE = (
    *("evaluation", "data.data_dir"),
    *("training.num_steps", "training.checkpoint_every", "training.keep_checkpoints"),
    *("training.log_every", "training.evaluate_every"),
    *("training.compilation_cache_dir", "training.num_compile_threads"),
    *("training.num_threads", "training.num_devices", "training.num_workers"),
    *("training.max_skipped_share", "training.skip_window"),
)


def train(
    config: ExperimentConfig,
    workdir: str | pathlib.Path,
    *,
    evaluate_fn: EvaluateFn | None = None,
    trainer: Trainer | None = None,
    **parts: Unpack[Parts],
) -> tuple[Trainer, TrainState]:
    """Train until `config.training.num_steps`, from the folder's latest checkpoint if it has one.

    Args:
        config: The run's config. A folder with checkpoints must have been written with the same
            one, except for the number of steps, the devices and what is logged.
        workdir: Folder for checkpoints and metrics.
        evaluate_fn: Called every `evaluate_every` steps; its results are logged.
        trainer: A trainer to use instead of a new one, with its compiled programs.
        **parts: Parts of a new trainer to use instead of those that the config describes:
            `dataset`, `model`, `task`, `optimizer`, `source`, `parameter_terms`, see `Parts`. Pass
            the same ones to continue a run, and the same `model` to `ghn_jax.load`.

    Returns:
        The trainer and its last state.

    Raises:
        ValueError: If `trainer` has another config, or parts are given together with it.
        CheckpointError: If the folder holds a run with another config, or a checkpoint could not be
            written.
        InterruptedRunError: If SIGTERM or SIGINT was received; the run is saved before.
        TooManySkippedError: If too many losses were not finite.
        WorkerError: If worker processes died again and again.
    """
    if trainer is None:
        trainer = Trainer(config, **parts)
    elif parts or trainer.config != config:
        differing = ", ".join(parts) or "config"
        raise ValueError(f"{differing} given beside a trainer, expected what the trainer has")
    settings = trainer.config.training
    schedule = RunSchedule(
        num_steps=settings.num_steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        keep_checkpoints=settings.keep_checkpoints,
        evaluate_every=settings.evaluate_every if evaluate_fn else None,
        evaluates_ends=False,
    )
    return trainer, run_training(GHNTraining(trainer, evaluate_fn), schedule, workdir)


class _Batch(NamedTuple):
    """The inputs of a step, and the seconds spent waiting for them."""

    meta_batch: MetaBatch
    images: Batch
    waiting: float


class GHNTraining:
    """The training of a GHN, for the run loop.

    Args:
        trainer: Makes the steps.
        evaluate_fn: Evaluates a state; None evaluates nothing.
    """

    def __init__(self, trainer: Trainer, evaluate_fn: EvaluateFn | None) -> None:
        self.config, self.may_change = trainer.config, MAY_CHANGE
        self._trainer, self._evaluate_fn = trainer, evaluate_fn
        training = trainer.config.training
        self._skips = SkipRule(training.max_skipped_share, training.skip_window)
        self._recent = _Recent()

    def init_state(self) -> TrainState:
        """Create the state before the first step."""
        return self._trainer.init_state()

    def restore(self, store: CheckpointStore) -> TrainState:
        """Restore the latest checkpoint, replicated over the devices of this run."""
        params_like = parameter_shapes(self._trainer.model)["params"]
        checkpoint = store.restore(self._trainer.optimizer.init, params_like=params_like)
        with reading_counters(store.folder):
            next_architecture = checkpoint.counters["next_architecture"]
            check_count("next_architecture", next_architecture)
            self._skips.restore(checkpoint.counters["skips"])
            # Older checkpoints have none.
            self._recent.restore(checkpoint.counters.get("recent", []))
        return TrainState(
            step=checkpoint.step,
            ghn_params=replicate(checkpoint.params, self._trainer.mesh),
            opt_state=replicate(checkpoint.state, self._trainer.mesh),
            key=checkpoint.key,
            next_architecture=next_architecture,
        )

    def save(self, store: CheckpointStore, state: TrainState, step: int) -> None:
        """Save all that `restore` needs."""
        counters = {
            "next_architecture": state.next_architecture,
            "skips": self._skips.state(),
            "recent": self._recent.state(),
        }
        store.save(
            step,
            params=state.ghn_params,
            state=state.opt_state,
            key=state.key,
            counters=counters,
            config=self.config,
        )

    @contextlib.contextmanager
    def batches(self, state: TrainState, step: int) -> Generator[Iterator[_Batch]]:
        """Architectures and images from a state on, without end, prepared ahead."""
        del step  # the state has it
        with (
            contextlib.closing(self._trainer.meta_batches(state)) as meta_batches,
            self._trainer.image_batches(state) as image_batches,
        ):
            yield _pair(meta_batches, image_batches)

    def step(
        self, state: TrainState, step: int, batch: _Batch, stop: bool
    ) -> tuple[TrainState, StepResult]:
        """Make one update."""
        del step  # the state has it
        return self._trainer.step(state, batch.meta_batch, batch.images, stop)

    def record(self, step: int, batch: _Batch, outcome: StepResult, report: RunReport) -> None:
        """Count losses, times and skipped architectures; TooManySkippedError if too many are."""
        indices, seed = batch.meta_batch.indices, self.config.training.seed
        for index in np.array(indices)[~outcome.finite].tolist():
            report.metrics.write_skipped(step, index, seed)
        self._skips.record(step, [(index, seed) for index in indices], outcome.finite.tolist())
        self._recent.add(outcome, batch.waiting)
        report.progress.update(
            step,
            loss=self._recent.last_loss,
            note=f"{self._trainer.num_compilations} compilations",
            architectures=len(indices),
        )

    def log(self, step: int, report: RunReport) -> None:
        """Write losses and times of the steps since the last time."""
        scalars = self._recent.summary()
        scalars["compilations"] = self._trainer.num_compilations
        scalars["skipped"] = self._skips.num_skipped
        report.metrics.write(step, scalars)
        self._recent.clear()

    def evaluate(self, state: TrainState, step: int) -> Mapping[str, float]:
        """What the caller of `train` measures, on the first process."""
        del step
        if self._evaluate_fn is None or jax.process_index():
            return {}
        return self._evaluate_fn(self._trainer, state)


def _pair(meta_batches: Iterator[MetaBatch], image_batches: Iterator[Batch]) -> Iterator[_Batch]:
    while True:
        start = time.perf_counter()
        meta_batch, images = next(meta_batches), next(image_batches)
        yield _Batch(meta_batch, images, time.perf_counter() - start)


class _Recent:
    """Losses and times since the last line of metrics."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.losses: list[list[float]] = []  # of finite architectures, step by step
        self.seconds: dict[str, float] = {}
        self.num_architectures = 0
        self.balance = 0.0
        self.num_timed = 0  # steps of this process

    @property
    def last_loss(self) -> float:
        return float(np.mean(self.losses[-1])) if self.losses[-1] else float("nan")

    def add(self, result: StepResult, waiting: float) -> None:
        self.losses.append(result.losses[result.finite].tolist())
        self.num_architectures += len(result.losses)
        self.num_timed += 1
        self.balance += result.balance
        for name, value in {**result.seconds, "waiting": waiting}.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def summary(self) -> dict[str, float]:
        losses = np.array([loss for step in self.losses for loss in step], np.float32)
        total = sum(self.seconds.values())
        return {
            "loss": float(losses.mean()) if losses.size else float("nan"),
            "architectures_per_second": self.num_architectures / total,
            "waiting_share": self.seconds["waiting"] / total,
            "balance": self.balance / self.num_timed,
            **{f"seconds/{name}": value / self.num_timed for name, value in self.seconds.items()},
        }

    def state(self) -> list[list[float]]:
        """What JSON can hold: losses only, since another process has times of its own."""
        return [list(step) for step in self.losses]

    def restore(self, state: list[list[float]]) -> None:
        self.losses = [[float(loss) for loss in step] for step in state]
