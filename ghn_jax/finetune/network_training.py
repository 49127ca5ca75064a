"""Train one network: from scratch, or from predicted parameters.

In: a Flax module, its variables and a data set. Out: trained variables, and the losses and
accuracies on the way.

    trainer = NetworkTrainer(module, dataset, config)
    result = trainer.run(variables, seed=0, learning_rate=0.01, workdir="/tmp/run")
    accuracy = trainer.evaluate(result.variables, "test")

One `NetworkTrainer` is for many runs: learning rate, seed and variables are data, so that a grid of
rates over several seeds and initialisations compiles the network once. A run in a folder goes on
from its checkpoint bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.data import Dataset, EvaluationBatches, TrainBatches
from ghn_jax.data.loader import EvaluationBatch
from ghn_jax.finetune.config import NetworkConfig
from ghn_jax.finetune.network_programs import (
    NetworkPrograms,
    NetworkState,
    as_state,
    call_arguments,
    to_variables,
)
from ghn_jax.programs.cache import keep_freed_memory
from ghn_jax.tracing.batch_stats import statistics_of_batch
from ghn_jax.training.checkpoints import CheckpointError, CheckpointStore
from ghn_jax.training.interruption import InterruptedRunError, StopRequest
from ghn_jax.training.metrics import MetricWriter, NoMetrics, TrainingProgress
from ghn_jax.training.optimizers import create_optimizer

PyTree = Any
_SIZE_STREAM = 4  # of the image sizes; 0 to 3 are the loader's
_LARGEST_CACHE = 2**30  # bytes of evaluation images kept in memory
_NUM_CALIBRATION_BATCHES = 10


class DivergedError(ValueError):
    """The loss is no longer finite."""


class CurvePoint(NamedTuple):
    """An evaluation.

    Attributes:
        step: Number of updates made.
        accuracy: Top-1 on validation images, in [0, 1].
    """

    step: int
    accuracy: float


class NetworkResult(NamedTuple):
    """A trained network.

    Attributes:
        variables: For `module.apply`, numpy arrays.
        curve: Accuracies on validation images, the first one before training.
    """

    variables: PyTree
    curve: list[CurvePoint]


class NetworkTrainer:
    """Programs and data that train one network, for any number of runs.

    Args:
        module: (B, S, S, 3) images -> (B, K) logits, or while it is trained a pair with the logits
            of an auxiliary head.
        dataset: Of K classes.
        config: Of the runs.

    Raises:
        ValueError: If the config asks for what the network does not have.
    """

    def __init__(self, module: nn.Module, dataset: Dataset, config: NetworkConfig) -> None:
        keep_freed_memory()
        self.module, self.dataset, self.config = module, dataset, config
        training = config.training
        if training.cutout > (size := dataset.image_size):
            raise ValueError(
                f"training.cutout is {training.cutout}, expected at most the image size, {size}"
            )
        if training.drop_path and not call_arguments(module).has_drop_path:
            raise ValueError(
                f"training.drop_path is {training.drop_path}, expected 0 for a"
                f" {type(module).__name__}, which has no drop path"
            )
        self._check_image_sizes()
        batch_size = min(config.data.batch_size, len(dataset.train))  # few shots may be fewer
        self._batch_size = batch_size
        self.steps_per_epoch = len(dataset.train) // batch_size
        self.num_steps = training.num_steps or training.num_epochs * self.steps_per_epoch
        # The rate is data: the optimizer's is 1, and updates are multiplied by it.
        optimizer = dataclasses.replace(config.optimizer, learning_rate=1.0)
        self.programs = NetworkPrograms(
            module, training, create_optimizer(optimizer, self.num_steps)
        )
        self._evaluation: dict[str, list[EvaluationBatch]] = {}

    def run(
        self,
        variables: PyTree,
        *,
        seed: int | None = None,
        learning_rate: float | None = None,
        workdir: str | pathlib.Path | None = None,
        quiet: bool = False,
    ) -> NetworkResult:
        """Train, from the folder's checkpoint if there is one.

        Args:
            variables: The network's, {"params": ..., other collections}.
            seed: Instead of the config's.
            learning_rate: Instead of the config's.
            workdir: Folder for checkpoints and metrics; None writes nothing.
            quiet: Whether no progress is shown.

        Returns:
            The trained variables and the curve.

        Raises:
            DivergedError: If the loss is not finite.
            InterruptedRunError: If SIGTERM or SIGINT came; what was done is saved.
            CheckpointError: If the folder holds a run with other settings.
        """
        training, optimizer = self.config.training, self.config.optimizer
        seed = training.seed if seed is None else seed
        rate = optimizer.learning_rate if learning_rate is None else learning_rate
        config = dataclasses.replace(
            self.config,
            training=dataclasses.replace(training, seed=seed),
            optimizer=dataclasses.replace(optimizer, learning_rate=rate),
        )
        batches = TrainBatches(self.dataset, self._batch_size, seed, training.cutout)
        # Copies: a step takes the memory of the state it is given.
        state = as_state(jax.tree.map(jnp.array, dict(variables)))
        state = state._replace(opt_state=self.programs.init_opt_state(state.params))
        with contextlib.ExitStack() as stack:
            store = writer = None
            resume_step = None
            if workdir is not None:
                keep = training.keep_checkpoints
                store = stack.enter_context(CheckpointStore(workdir, keep, type(self.config)))
                resume_step = store.latest_step()
            if store is not None and resume_step is not None:
                state, curve = _restore(store, state, config)
            else:
                if training.calibrate and state.collections.get("batch_stats"):
                    state = state._replace(collections=self._calibrate(state, batches))
                curve = [CurvePoint(0, self._evaluate(state, "validation"))]
            writer = MetricWriter(workdir, resume_step) if workdir is not None else NoMetrics()
            writer = stack.enter_context(writer)
            if resume_step is None:
                writer.write(0, {"validation/top1": curve[0].accuracy})
            first = resume_step or 0
            progress = stack.enter_context(
                TrainingProgress(self.num_steps, first, quiet=quiet or first == self.num_steps)
            )
            request = stack.enter_context(StopRequest())
            loop = _Loop(self, config, store, writer, progress, request, batches, rate, curve)
            state = loop.until_end(state, first)
        return NetworkResult(to_variables(state), curve)

    def evaluate(self, variables: PyTree, split: str) -> float:
        """Top-1 accuracy, in [0, 1], with batch norm on running statistics.

        Args:
            variables: The network's.
            split: 'train', 'validation' (at most `training.max_validation_images`) or 'test'.
        """
        return self._evaluate(as_state(variables), split)

    def calibrate(self, variables: PyTree, seed: int | None = None) -> PyTree:
        """Fill batch norm's running statistics from training images.

        Args:
            variables: The network's, such as those predicted.
            seed: Of the order of the images; None is the config's.

        Returns:
            New variables.
        """
        training = self.config.training
        seed = training.seed if seed is None else seed
        batches = TrainBatches(self.dataset, self._batch_size, seed)
        state = as_state(variables)
        if state.collections.get("batch_stats"):
            state = state._replace(collections=self._calibrate(state, batches))
        return to_variables(state)

    def step(self, state: NetworkState, batch, rate: float, seed: int, step: int):
        """Make update number `step`, from 0: the new state and the loss."""
        images, labels = batch
        training = self.config.training
        size = None
        if training.image_sizes:
            sequence = np.random.SeedSequence(seed, spawn_key=(_SIZE_STREAM, step))
            size = int(np.random.default_rng(sequence).choice(training.image_sizes))
        epoch = step // self.steps_per_epoch
        num_epochs = max(self.num_steps / self.steps_per_epoch, 1)
        scalars = np.array([rate, training.drop_path * epoch / num_epochs], np.float32)
        key = jax.random.fold_in(jax.random.key(seed), step)
        return self.programs.update(state, images, labels, scalars, key, size)

    def _check_image_sizes(self) -> None:
        """Raise ValueError if the network's parameters depend on the size of its images."""
        sizes = (self.dataset.image_size, *self.config.training.image_sizes)
        if len(sizes) == 1:
            return
        shapes = []
        for size in sizes:
            images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
            try:
                init = jax.eval_shape(self.module.init, jax.random.key(0), images)
                shapes.append(jax.tree.map(lambda leaf: leaf.shape, init["params"]))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"training.image_sizes has {size}, on which the network fails: {error}"
                ) from error
            if shapes[-1] != shapes[0]:
                raise ValueError(
                    f"training.image_sizes has {size}, for which parameters of a"
                    f" {type(self.module).__name__} have other shapes than for {sizes[0]}, expected"
                    " a network whose parameters do not depend on the size of its images"
                )

    def _evaluate(self, state: NetworkState, split: str) -> float:
        variables = {"params": state.params, **state.collections}
        counts = [
            (self.programs.count_correct(variables, *batch), batch.counted_mask.sum())
            for batch in self._evaluation_batches(split)
        ]
        correct = sum(int(correct) for correct, _ in counts)
        return correct / sum(int(count) for _, count in counts)

    def _evaluation_batches(self, split: str):
        if split in self._evaluation:
            return self._evaluation[split]
        training, part = self.config.training, self.dataset.split(split)
        dataset = self.dataset
        most = training.max_validation_images if split == "validation" else None
        if most is not None and len(part) > most:
            # Spread evenly over the split, whose order may be that of the classes.
            positions = np.linspace(0, len(part) - 1, most).astype(np.int64)
            dataset = dataclasses.replace(dataset, validation=part.subset(positions))
        batch_size = min(training.evaluation_batch_size, len(dataset.split(split)))
        batches = EvaluationBatches(dataset, split, batch_size)
        num_bytes = len(batches) * batch_size * dataset.image_size**2 * 3 * 4
        if num_bytes > _LARGEST_CACHE:
            return batches
        self._evaluation[split] = list(batches)
        return self._evaluation[split]

    def _calibrate(self, state: NetworkState, batches: TrainBatches) -> PyTree:
        """Running statistics of the first training batches, as `calibrate_batch_stats`."""
        variables = {"params": state.params, **state.collections}
        parts = []
        for step in range(min(_NUM_CALIBRATION_BATCHES, batches.steps_per_epoch)):
            images, _ = batches.batch(step)
            zeros, ones = (
                self.programs.batch_statistics(variables, images, fill) for fill in (0.0, 1.0)
            )
            parts.append(statistics_of_batch(zeros, ones))
        stats = jax.tree.map(lambda *x: jnp.asarray(np.mean(x, axis=0)), *parts)
        return {**state.collections, "batch_stats": stats}


@dataclasses.dataclass
class _Loop:
    trainer: NetworkTrainer
    config: NetworkConfig
    store: CheckpointStore | None
    writer: MetricWriter | NoMetrics
    progress: TrainingProgress
    request: StopRequest
    batches: TrainBatches
    rate: float
    curve: list[CurvePoint]

    def until_end(self, state: NetworkState, step: int) -> NetworkState:
        training, num_steps = self.config.training, self.trainer.num_steps
        losses: list[jax.Array] = []
        if step >= num_steps:
            return state
        with self.batches.prefetch(step) as images:
            for batch in images:
                state, loss = self.trainer.step(state, batch, self.rate, training.seed, step)
                step += 1
                losses.append(loss)
                is_last = step == num_steps
                if step % training.log_every == 0 or is_last or self.request.is_made:
                    self._log(step, losses)
                if is_last or (training.evaluate_every and step % training.evaluate_every == 0):
                    self.curve.append(CurvePoint(step, self.trainer._evaluate(state, "validation")))
                    self.writer.write(step, {"validation/top1": self.curve[-1].accuracy})
                every = training.checkpoint_every
                if is_last or self.request.is_made or (every and step % every == 0):
                    self._save(step, state)
                if is_last:
                    return state
                if self.request.is_made:
                    self._stop(step)
        raise AssertionError("batches end")

    def _log(self, step: int, losses: list[jax.Array]) -> None:
        loss = float(np.mean(jax.device_get(losses)))
        losses.clear()
        self.writer.write(step, {"loss": loss})
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {step} with learning rate {self.rate:g}: try a"
                " smaller rate, or optimizer.clip_norm"
            )
        accuracy = self.curve[-1].accuracy if self.curve else None
        self.progress.update_network(step, loss=loss, accuracy=accuracy)

    def _save(self, step: int, state: NetworkState) -> None:
        if self.store is None:
            return
        self.store.save(
            step,
            ghn_params=state.params,
            opt_state=(state.collections, state.opt_state),
            key=jax.random.key(self.config.training.seed),
            counters={"curve": [list(point) for point in self.curve]},
            config=self.config,
        )

    def _stop(self, step: int) -> None:
        saved = "nothing is saved, for want of a work directory"
        if self.store is not None:
            self.store.wait()
            saved = f"step {step} of {self.trainer.num_steps} is saved in {self.store.folder}"
        raise InterruptedRunError(f"asked to stop: {saved}; the same command goes on from there")


def _restore(store: CheckpointStore, state: NetworkState, config: NetworkConfig):
    """The state and the curve of the latest checkpoint, if its run had the same settings."""
    checkpoint = store.restore((state.collections, state.opt_state))
    was, now = checkpoint.config.to_dict(), config.to_dict()
    for section in ("data", "optimizer", "training"):
        for name, value in now[section].items():
            if was[section][name] != value and name not in ("log_every", "keep_checkpoints"):
                raise CheckpointError(
                    f"{store.folder} holds a run with {section}.{name} = {was[section][name]!r},"
                    f" expected {value!r}: take another work directory"
                )
    shapes = lambda tree: jax.tree.map(np.shape, tree)  # noqa: E731
    if shapes(checkpoint.ghn_params) != shapes(state.params):
        raise CheckpointError(
            f"{store.folder} holds another network's parameters, expected those of the network that"
            " is trained: take another work directory"
        )
    # Copies: a step takes the memory of the state it is given.
    collections, opt_state = jax.tree.map(jnp.array, checkpoint.opt_state)
    params = jax.tree.map(jnp.array, checkpoint.ghn_params)
    curve = [CurvePoint(int(step), acc) for step, acc in checkpoint.counters["curve"]]
    return NetworkState(params, collections, opt_state), curve
