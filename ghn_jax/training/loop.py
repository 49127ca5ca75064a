"""Train a GHN: draw architectures, predict their parameters, differentiate their losses back.

Everything random follows from the seed and the position in the streams, both in the checkpoint, so
that a run resumed after any interruption goes on bit for bit. Of several processes the first one
writes metrics; all take part in checkpoints, in one folder that all of them see.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ghn_jax.data import Dataset
from ghn_jax.hypernetworks import Hypernetwork
from ghn_jax.parallel.processes import replicate
from ghn_jax.training.checkpoints import CheckpointError, CheckpointStore, load_checkpoint
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.interruption import InterruptedRunError, StopRequest
from ghn_jax.training.metrics import MetricWriter, NoMetrics, TrainingProgress
from ghn_jax.training.skipping import SkipRule
from ghn_jax.training.trainer import StepResult, Trainer, TrainState

_LOGGER = logging.getLogger(__name__)
PyTree = Any
EvaluateFn = Callable[[Trainer, TrainState], dict[str, float]]


def train(
    config: ExperimentConfig,
    workdir: str | pathlib.Path,
    *,
    dataset: Dataset | None = None,
    evaluate_fn: EvaluateFn | None = None,
    trainer: Trainer | None = None,
    model: Hypernetwork | None = None,
) -> tuple[Trainer, TrainState]:
    """Train until `config.training.num_steps`, from the folder's latest checkpoint if it has one.

    Args:
        config: Of the run; a folder that holds checkpoints must have been written with the same
            one, but for the number of steps, the devices and what is logged.
        workdir: Folder for checkpoints and metrics.
        dataset: Images; None loads what the config names.
        evaluate_fn: Called every `evaluate_every` steps; what it returns is logged.
        trainer: Parts to use instead of new ones, with their compiled programs.
        model: The hypernetwork, where it is composed of modules of one's own; a run goes on, and
            `ghn_jax.load` reads it, with the same.

    Returns:
        The parts of the run, and its last state.

    Raises:
        CheckpointError: If the folder holds a run with another configuration, or a checkpoint could
            not be written.
        InterruptedRunError: If SIGTERM or SIGINT came; what was done is saved.
        TooManySkippedError: If too many losses were not finite.
        WorkerError: If worker processes died again and again.
    """
    training = config.training
    trainer = trainer or Trainer(config, dataset, model=model)
    skips = SkipRule(training.max_skipped_share, training.skip_window)
    is_first = jax.process_index() == 0
    with CheckpointStore(workdir, training.keep_checkpoints) as store:
        resume_step = store.latest_step()
        recent = _Recent()
        if resume_step is None:
            state = trainer.init_state()
        else:
            ghn_params = _check_same_run(store, resume_step, config)
            template = jax.eval_shape(trainer.optimizer.init, ghn_params)
            state = _restore(store, template, trainer, skips, recent)
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(
                MetricWriter(workdir, resume_step) if is_first else NoMetrics()
            )
            progress = TrainingProgress(training.num_steps, state.step, quiet=not is_first)
            stack.enter_context(progress)
            request = stack.enter_context(StopRequest())
            run = _Run(trainer, store, writer, progress, skips, evaluate_fn, request, recent)
            state = run.until_end(state)
    return trainer, state


@dataclasses.dataclass
class _Run:
    trainer: Trainer
    store: CheckpointStore
    writer: MetricWriter | NoMetrics
    progress: TrainingProgress
    skips: SkipRule
    evaluate_fn: EvaluateFn | None
    request: StopRequest
    recent: "_Recent"

    def until_end(self, state: TrainState) -> TrainState:
        trainer, training = self.trainer, self.trainer.config.training
        if state.step >= training.num_steps:
            return state
        with (
            contextlib.closing(trainer.meta_batches(state)) as meta_batches,
            trainer.image_batches(state) as image_batches,
        ):
            while state.step < training.num_steps:
                waited = time.perf_counter()
                meta_batch, batch = next(meta_batches), next(image_batches)
                waiting = time.perf_counter() - waited
                state, result = trainer.step(state, meta_batch, batch, self.request.is_made)
                self._count(state, meta_batch.indices, result, waiting)
                self._evaluate(state)
                is_last = state.step == training.num_steps
                if state.step % training.checkpoint_every == 0 or is_last or result.stop:
                    self._save(state)
                if result.stop and not is_last:
                    self.store.wait()
                    raise InterruptedRunError(
                        f"asked to stop: step {state.step} of {training.num_steps} is saved in"
                        f" {self.store.folder}; the same command goes on from there"
                    )
        return state

    def _count(self, state: TrainState, indices, result: StepResult, waiting: float) -> None:
        training = self.trainer.config.training
        for index in np.array(indices)[~result.finite].tolist():
            self.writer.write_skipped(state.step, index, training.seed)
        named = [(index, training.seed) for index in indices]
        self.skips.record(state.step, named, result.finite.tolist())
        self.recent.add(result, waiting)
        last_loss = self.recent.last_loss
        if state.step % training.log_every == 0 or state.step == training.num_steps:
            self._log(state)
        self.progress.update(
            state.step,
            loss=last_loss,
            num_architectures=len(indices),
            num_compilations=self.trainer.num_compilations,
        )

    def _log(self, state: TrainState) -> None:
        scalars = self.recent.summary()
        scalars["compilations"] = self.trainer.num_compilations
        scalars["skipped"] = self.skips.num_skipped
        self.writer.write(state.step, scalars)
        self.recent.clear()

    def _evaluate(self, state: TrainState) -> None:
        training = self.trainer.config.training
        if self.evaluate_fn is None or not training.evaluate_every or jax.process_index():
            return
        if state.step % training.evaluate_every == 0 and state.step < training.num_steps:
            self.writer.write(state.step, self.evaluate_fn(self.trainer, state))

    def _save(self, state: TrainState) -> None:
        counters = {
            "next_architecture": state.next_architecture,
            "skips": self.skips.state(),
            "recent": self.recent.state(),
        }
        self.store.save(
            state.step,
            ghn_params=state.ghn_params,
            opt_state=state.opt_state,
            key=state.key,
            counters=counters,
            config=self.trainer.config,
        )


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

    def state(self) -> list[list[float | None]]:
        """What JSON can hold: losses only, since another process has times of its own."""
        return [list(step) for step in self.losses]

    def restore(self, state: list[list[float]]) -> None:
        self.losses = [list(step) for step in state]


# Fields that change neither the parameters nor what the checkpoint's counters mean, but for the
# order in which gradients are summed. The number of steps moves the end of a cosine schedule:
# extending a run is the user's decision.
_MAY_CHANGE = (
    *("num_steps", "checkpoint_every", "keep_checkpoints", "log_every", "evaluate_every"),
    *("compilation_cache_dir", "num_compile_threads", "num_threads", "num_devices", "num_workers"),
    *("max_skipped_share", "skip_window", "data_dir"),
)


def _check_same_run(store: CheckpointStore, step: int, config: ExperimentConfig) -> PyTree:
    """Raise CheckpointError naming the field that differs; return the GHN's parameters."""
    saved_config, ghn_params = load_checkpoint(store.folder / str(step))
    saved, wanted = saved_config.to_dict(), config.to_dict()
    for section, fields in wanted.items():
        if section == "evaluation":
            continue
        pairs = fields.items() if isinstance(fields, dict) else [("", fields)]
        for name, value in pairs:
            before = saved[section][name] if name else saved[section]
            if before != value and name not in _MAY_CHANGE:
                raise CheckpointError(
                    f"{store.folder} holds a run with {section}{'.' if name else ''}{name} ="
                    f" {before!r}, but the config says {value!r}: use another --workdir, or the"
                    " run's config"
                )
    return ghn_params


def _restore(
    store: CheckpointStore,
    opt_state_template: PyTree,
    trainer: Trainer,
    skips: SkipRule,
    recent: _Recent,
) -> TrainState:
    checkpoint = store.restore(opt_state_template)
    skips.restore(checkpoint.counters["skips"])
    recent.restore(checkpoint.counters.get("recent", []))  # older checkpoints have none
    _LOGGER.info("going on from step %d of %s", checkpoint.step, store.folder)
    return TrainState(
        step=checkpoint.step,
        ghn_params=replicate(checkpoint.ghn_params, trainer.mesh),
        opt_state=replicate(checkpoint.opt_state, trainer.mesh),
        key=checkpoint.key,
        next_architecture=checkpoint.counters["next_architecture"],
    )
