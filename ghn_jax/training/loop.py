"""Train a GHN: draw architectures, predict their parameters, differentiate their losses back.

Each step draws a batch of images and a meta batch of architectures; the loss is the mean over
architectures of cross-entropy on that batch (spec section 4). Everything random follows from the
seed and the position in the streams, both in the checkpoint, so that a run resumed after any
interruption goes on bit for bit.
"""

import dataclasses
import itertools
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghn_jax.compilation import compile_lowered, enable_compilation_cache
from ghn_jax.data import Dataset, TrainBatches, load_dataset
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.hypernetworks.prediction import Predictor
from ghn_jax.sampling import ArchitectureStream
from ghn_jax.training.checkpoints import CheckpointError, CheckpointStore, load_checkpoint
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.meta_batches import MetaBatch, iterate_meta_batches
from ghn_jax.training.metrics import MetricWriter, TrainingProgress
from ghn_jax.training.optimizers import create_optimizer
from ghn_jax.training.skipping import SkipRule

_LOGGER = logging.getLogger(__name__)
PyTree = Any


@dataclasses.dataclass
class TrainState:
    """What changes from step to step, all of it in the checkpoint.

    Attributes:
        step: Number of updates made.
        ghn_params: Parameters of the hypernetwork.
        opt_state: State of the optimizer.
        key: Random key from which every step's keys are derived.
        next_architecture: Index in the stream of the first architecture not yet used.
    """

    step: int
    ghn_params: PyTree
    opt_state: PyTree
    key: jax.Array
    next_architecture: int


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Of one step: the losses of its architectures, which were finite, and where the time went."""

    losses: np.ndarray
    finite: np.ndarray
    seconds: dict[str, float]


class Trainer:
    """The parts of a training run and its step.

    Args:
        config: Of the run.
        dataset: Images; None loads what the config names.

    Raises:
        ValueError: If the data set does not fit the space of architectures.
    """

    def __init__(self, config: ExperimentConfig, dataset: Dataset | None = None) -> None:
        training = config.training
        if training.compilation_cache_dir:
            enable_compilation_cache(training.compilation_cache_dir)
        self.config = config
        self.dataset = dataset or load_dataset(config.data.name, config.data.data_dir)
        check_dataset(config, self.dataset)
        self.predictor = Predictor(config.ghn, training.num_compile_threads)
        self.engine = BlockwiseEngine(
            training.label_smoothing, training.num_threads, training.num_compile_threads
        )
        self.batches = TrainBatches(self.dataset, config.data.batch_size, training.seed)
        self.stream = ArchitectureStream(config.space, training.seed)
        self.optimizer = create_optimizer(config.optimizer, training.num_steps)
        self._compiled_update: jax.stages.Compiled | None = None

    @property
    def num_compilations(self) -> int:
        """Programs compiled so far, of the hypernetwork and of the targets."""
        return self.predictor.num_compilations + self.engine.num_compilations

    def init_state(self) -> TrainState:
        """The state before the first step."""
        init_key, key = jax.random.split(jax.random.key(self.config.training.seed))
        ghn_params = self.predictor.init(init_key)
        return TrainState(0, ghn_params, jax.jit(self.optimizer.init)(ghn_params), key, 0)

    def step(self, state: TrainState, meta_batch: MetaBatch) -> tuple[TrainState, StepResult]:
        """Make one update.

        Architectures whose loss or gradient is not finite do not take part in it; without any left
        the parameters stay as they are.

        Args:
            state: Before the step.
            meta_batch: The architectures.

        Returns:
            The state after the step, and what happened.
        """
        clock = _Clock()
        images, labels = self.batches.batch(state.step)
        clock.lap("data")
        predict = self.predictor.predict_with_pull_back
        target_params, pull_back = predict(state.ghn_params, meta_batch.prepared)
        clock.lap("ghn_forward")
        keys = self._dropout_keys(state, len(meta_batch.plans))
        results = self.engine.loss_and_grads(meta_batch.plans, target_params, images, labels, keys)
        losses = np.array([float(result.loss) for result in results], np.float32)
        finite = np.isfinite(losses)
        for index in np.flatnonzero(finite):
            finite[index] = all(np.isfinite(np.asarray(g)).all() for g in results[index].grads)
        clock.lap("targets")
        ghn_params, opt_state = state.ghn_params, state.opt_state
        if finite.any():
            kept = [
                result.grads if ok else None for result, ok in zip(results, finite, strict=True)
            ]
            grads = _divide(pull_back(kept), float(finite.sum()))
            ghn_params, opt_state, norm = self._update(ghn_params, opt_state, grads)
            if not np.isfinite(float(norm)):
                # The update is discarded: every architecture of the step counts as skipped.
                ghn_params, opt_state = state.ghn_params, state.opt_state
                finite = np.zeros_like(finite)
        clock.lap("ghn_backward")
        next_architecture = meta_batch.next_index
        state = TrainState(state.step + 1, ghn_params, opt_state, state.key, next_architecture)
        return state, StepResult(losses, finite, clock.seconds)

    def _update(self, *arguments):
        """(ghn_params, opt_state, grads) -> (ghn_params, opt_state, norm of the gradient)."""

        def update(ghn_params, opt_state, grads):
            updates, opt_state = self.optimizer.update(grads, opt_state, ghn_params)
            return optax.apply_updates(ghn_params, updates), opt_state, optax.global_norm(grads)

        if self._compiled_update is None:
            self._compiled_update = compile_lowered(jax.jit(update).lower(*arguments))
        return self._compiled_update(*arguments)

    def _dropout_keys(self, state: TrainState, num: int) -> Sequence[jax.Array] | None:
        if not self.config.training.target_dropout:
            return None
        return list(jax.random.split(jax.random.fold_in(state.key, state.step), num))


def train(
    config: ExperimentConfig,
    workdir: str | pathlib.Path,
    *,
    dataset: Dataset | None = None,
    evaluate_fn: Callable[[Trainer, TrainState], dict[str, float]] | None = None,
    trainer: Trainer | None = None,
) -> tuple[Trainer, TrainState]:
    """Train until `config.training.num_steps`, from the folder's latest checkpoint if it has one.

    Args:
        config: Of the run; a folder that holds checkpoints must have been written with the same
            one, but for the number of steps and what is logged.
        workdir: Folder for checkpoints and metrics.
        dataset: Images; None loads what the config names.
        evaluate_fn: Called every `evaluate_every` steps; what it returns is logged.
        trainer: Parts to use instead of new ones, with their compiled programs.

    Returns:
        The parts of the run, and its last state.

    Raises:
        CheckpointError: If the folder holds a run with another configuration.
        TooManySkippedError: If too many losses were not finite.
    """
    training = config.training
    trainer = trainer or Trainer(config, dataset)
    skips = SkipRule(training.max_skipped_share, training.skip_window)
    with CheckpointStore(workdir, training.keep_checkpoints) as store:
        resume_step = store.latest_step()
        if resume_step is None:
            state = trainer.init_state()
        else:
            ghn_params = _check_same_run(store, resume_step, config)
            state = _restore(store, jax.eval_shape(trainer.optimizer.init, ghn_params), skips)
        with (
            MetricWriter(workdir, resume_step) as writer,
            TrainingProgress(training.num_steps, state.step) as progress,
        ):
            run = _Run(trainer, store, writer, progress, skips, evaluate_fn)
            state = run.until_end(state)
    return trainer, state


@dataclasses.dataclass
class _Run:
    trainer: Trainer
    store: CheckpointStore
    writer: MetricWriter
    progress: TrainingProgress
    skips: SkipRule
    evaluate_fn: Callable | None

    def until_end(self, state: TrainState) -> TrainState:
        trainer, training = self.trainer, self.trainer.config.training
        remaining = training.num_steps - state.step
        if remaining <= 0:
            return state
        meta_batches = iterate_meta_batches(
            trainer.stream,
            trainer.predictor,
            state.next_architecture,
            training.meta_batch_size,
            training.max_nodes,
        )
        recent = _Recent()
        waited = time.perf_counter()
        for meta_batch in itertools.islice(meta_batches, remaining):
            waiting = time.perf_counter() - waited
            state, result = trainer.step(state, meta_batch)
            named = [(index, training.seed) for index in meta_batch.indices]
            self.skips.record(state.step, named, result.finite.tolist())
            recent.add(result, waiting)
            if state.step % training.log_every == 0 or state.step == training.num_steps:
                self._log(state, recent)
                recent = _Recent()
            self.progress.update(
                state.step,
                loss=recent.last_loss if recent.losses else float(np.mean(result.losses)),
                num_architectures=len(meta_batch.plans),
                num_compilations=trainer.num_compilations,
            )
            if self.evaluate_fn and training.evaluate_every:
                if state.step % training.evaluate_every == 0 and state.step < training.num_steps:
                    self.writer.write(state.step, self.evaluate_fn(trainer, state))
            if state.step % training.checkpoint_every == 0 or state.step == training.num_steps:
                self._save(state)
            waited = time.perf_counter()
        return state

    def _log(self, state: TrainState, recent: "_Recent") -> None:
        scalars = recent.summary()
        scalars["compilations"] = self.trainer.num_compilations
        scalars["skipped"] = self.skips.num_skipped
        self.writer.write(state.step, scalars)

    def _save(self, state: TrainState) -> None:
        self.store.save(
            state.step,
            ghn_params=state.ghn_params,
            opt_state=state.opt_state,
            key=state.key,
            counters={"next_architecture": state.next_architecture, "skips": self.skips.state()},
            config=self.trainer.config,
        )


class _Recent:
    """Losses and times since the last line of metrics."""

    def __init__(self) -> None:
        self.losses: list[np.ndarray] = []
        self.seconds: dict[str, float] = {}
        self.num_architectures = 0

    @property
    def last_loss(self) -> float:
        return float(np.mean(self.losses[-1])) if len(self.losses[-1]) else float("nan")

    def add(self, result: StepResult, waiting: float) -> None:
        self.losses.append(result.losses[result.finite])
        self.num_architectures += len(result.losses)
        for name, value in {**result.seconds, "waiting": waiting}.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def summary(self) -> dict[str, float]:
        losses = np.concatenate(self.losses)
        total = sum(self.seconds.values())
        return {
            "loss": float(losses.mean()) if losses.size else float("nan"),
            "architectures_per_second": self.num_architectures / total,
            **{f"seconds/{name}": value / len(self.losses) for name, value in self.seconds.items()},
        }


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


@jax.jit
def _divide(tree: PyTree, divisor: float) -> PyTree:
    return jax.tree.map(lambda x: x / jnp.asarray(divisor, x.dtype), tree)


def check_dataset(config: ExperimentConfig, dataset: Dataset) -> None:
    """Raise ValueError unless the space of architectures is for such images and classes."""
    for name in ("image_size", "num_classes"):
        wanted, found = getattr(config.space, name), getattr(dataset, name)
        if wanted != found:
            raise ValueError(
                f"space.{name} is {wanted}, expected {found} for the data set {dataset.name!r}"
            )


# Fields that change neither the parameters nor what the checkpoint's counters mean. The number of
# steps moves the end of a cosine schedule: extending a run is the user's decision.
_MAY_CHANGE = (
    *("num_steps", "checkpoint_every", "keep_checkpoints", "log_every", "evaluate_every"),
    *("compilation_cache_dir", "num_compile_threads", "num_threads"),
    *("max_skipped_share", "skip_window"),
)


def _check_same_run(store: CheckpointStore, step: int, config: ExperimentConfig) -> PyTree:
    """Raise CheckpointError naming the field that differs; return the GHN's parameters."""
    saved_config, ghn_params = load_checkpoint(store.folder / str(step))
    saved, wanted = saved_config.to_dict(), config.to_dict()
    for section in ("data", "space", "ghn", "optimizer", "training"):
        for name, value in wanted[section].items():
            if saved[section][name] != value and name not in (*_MAY_CHANGE, "data_dir"):
                raise CheckpointError(
                    f"{store.folder} holds a run with {section}.{name} = {saved[section][name]!r},"
                    f" but the config says {value!r}: use another --workdir, or the run's config"
                )
    return ghn_params


def _restore(store: CheckpointStore, opt_state_template: PyTree, skips: SkipRule) -> TrainState:
    checkpoint = store.restore(opt_state_template)
    skips.restore(checkpoint.counters["skips"])
    _LOGGER.info("going on from step %d of %s", checkpoint.step, store.folder)
    return TrainState(
        step=checkpoint.step,
        ghn_params=jax.tree.map(jnp.asarray, checkpoint.ghn_params),
        opt_state=jax.tree.map(jnp.asarray, checkpoint.opt_state),
        key=checkpoint.key,
        next_architecture=checkpoint.counters["next_architecture"],
    )
