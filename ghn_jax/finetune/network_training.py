"""Train one network: from scratch, or from predicted parameters.

In: a Flax module, its variables and a data set. Out: trained variables, and the losses and
accuracies along the way.

    trainer = NetworkTrainer(module, dataset, config)
    result = trainer.run(variables, seed=0, learning_rate=0.01, workdir="/tmp/run")
    accuracy = trainer.evaluate(result.variables, "test")

One `NetworkTrainer` serves many runs: learning rate, seed and variables are data, so that a grid of
rates over several seeds and initialisations compiles the network once. A run in a folder resumes
from its checkpoint bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.arrays import PyTree
from ghn_jax.configuration.validation import check_count, check_instance
from ghn_jax.data import Dataset, Prefetcher, TrainBatches
from ghn_jax.finetune.config import NetworkConfig
from ghn_jax.finetune.network_evaluation import NetworkEvaluator
from ghn_jax.finetune.network_programs import (
    NetworkPrograms,
    NetworkState,
    as_state,
    call_arguments,
    check_image_sizes,
    to_variables,
)
from ghn_jax.programs.cache import keep_freed_memory
from ghn_jax.tasks import Batch
from ghn_jax.training.checkpoints import CheckpointStore, reading_counters
from ghn_jax.training.optimizers import create_optimizer
from ghn_jax.training.run_loop import RunReport, RunSchedule, run_training

_SIZE_STREAM = 4  # the random stream of image sizes; 0 to 3 are the loader's


class DivergedError(ValueError):
    """Raised when the loss is no longer finite."""


class CurvePoint(NamedTuple):
    """The result of one evaluation.

    Attributes:
        step: Number of updates made so far.
        accuracy: Top-1 accuracy on validation images, in [0, 1].
    """

    step: int
    accuracy: float


class NetworkResult(NamedTuple):
    """A trained network.

    Attributes:
        variables: The variables for `module.apply`, as numpy arrays.
        curve: Accuracies on validation images, starting with the one before training.
    """

    variables: PyTree
    curve: list[CurvePoint]


class NetworkTrainer:
    """Trains one network, any number of times.

    Args:
        module: (B, S, S, C) images -> (B, K) logits; during training possibly a pair with the
            logits of an auxiliary head.
        dataset: Images of K classes.
        config: The config of the runs.

    Raises:
        ValueError: If the config asks for something that the network does not support.
    """

    def __init__(self, module: nn.Module, dataset: Dataset, config: NetworkConfig) -> None:
        check_instance("module", module, nn.Module, "a Flax linen module")
        check_instance("dataset", dataset, Dataset, "a ghn_jax.data.Dataset")
        check_instance("config", config, NetworkConfig, "a NetworkConfig")
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
        check_image_sizes(module, (size, *training.image_sizes), dataset.num_channels)
        # A few-shot set can be smaller than a batch.
        self._batch_size = min(config.data.batch_size, len(dataset.train))
        self.steps_per_epoch = len(dataset.train) // self._batch_size
        self.num_steps = training.num_steps or training.num_epochs * self.steps_per_epoch
        # The rate is data: the optimizer has rate 1, and its updates are multiplied by ours.
        optimizer = dataclasses.replace(config.optimizer, learning_rate=1.0)
        self.programs = NetworkPrograms(
            module, training, create_optimizer(optimizer, self.num_steps)
        )
        self.evaluator = NetworkEvaluator(self.programs, dataset, training)

    def run(
        self,
        variables: PyTree,
        *,
        seed: int | None = None,
        learning_rate: float | None = None,
        workdir: str | pathlib.Path | None = None,
        quiet: bool = False,
    ) -> NetworkResult:
        """Train the network, resuming from the folder's checkpoint if there is one.

        Args:
            variables: The network's variables, {"params": ..., other collections}.
            seed: Seed to use instead of the config's.
            learning_rate: Learning rate to use instead of the config's.
            workdir: Folder for checkpoints and metrics; None writes nothing.
            quiet: Whether to hide progress.

        Returns:
            The trained variables and the curve.

        Raises:
            DivergedError: If the loss is not finite.
            InterruptedRunError: If SIGTERM or SIGINT arrived; progress is saved.
            CheckpointError: If the folder holds a run with other settings.
        """
        training, optimizer = self.config.training, self.config.optimizer
        if seed is not None:
            training = dataclasses.replace(training, seed=seed)
        if learning_rate is not None:
            optimizer = dataclasses.replace(optimizer, learning_rate=learning_rate)
        config = dataclasses.replace(self.config, training=training, optimizer=optimizer)
        schedule = RunSchedule(
            num_steps=self.num_steps,
            log_every=training.log_every,
            checkpoint_every=training.checkpoint_every,
            keep_checkpoints=training.keep_checkpoints,
            evaluate_every=training.evaluate_every,
            evaluates_ends=True,
        )
        network = NetworkTraining(self, config, variables)
        state = run_training(network, schedule, workdir, quiet=quiet)
        return NetworkResult(to_variables(state), network.curve)

    def evaluate(self, variables: PyTree, split: str) -> float:
        """Measure top-1 accuracy, in [0, 1], with batch norm using running statistics.

        Args:
            variables: The network's variables.
            split: 'train', 'validation' (at most `training.max_validation_images`) or 'test'.
        """
        return self.evaluator.accuracy(as_state(variables), split)

    def calibrate(self, variables: PyTree, seed: int | None = None) -> PyTree:
        """Compute batch norm's running statistics from training images.

        Args:
            variables: The network's variables, such as predicted ones.
            seed: Seed for the order of the images; None uses the config's.

        Returns:
            The variables with the new statistics.
        """
        seed = self.config.training.seed if seed is None else seed
        check_count("seed", seed)
        batches = self.train_batches(seed, cutout=0)
        return to_variables(self.evaluator.calibrate(as_state(variables), batches))

    def train_batches(self, seed: int, cutout: int) -> TrainBatches:
        """Return the training images of a run, in batches."""
        return TrainBatches(self.dataset, self._batch_size, seed, cutout)

    def step(
        self, state: NetworkState, batch: Batch, rate: float, seed: int, step: int
    ) -> tuple[NetworkState, jax.Array]:
        """Make update number `step`, counted from 0, and return the new state and the loss."""
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


class _Outcome(NamedTuple):
    loss: jax.Array
    stop: bool


class NetworkTraining:
    """Adapts the training of a network to the run loop.

    Args:
        trainer: The trainer that makes the steps.
        config: The run's config, with its seed and learning rate.
        variables: The network's variables before the first step.

    Attributes:
        curve: Accuracies on validation images so far.
    """

    def __init__(self, trainer: NetworkTrainer, config: NetworkConfig, variables: PyTree) -> None:
        self.config, self.curve = config, list[CurvePoint]()
        own = {field.name for field in dataclasses.fields(NetworkConfig)}
        # The fields that a comparison adds say which runs there are, not how one of them trains.
        others = {field.name for field in dataclasses.fields(config)} - own
        self.may_change = {"training.log_every", "training.keep_checkpoints", *others}
        self._trainer, self._variables = trainer, dict(variables)
        training = config.training
        self._images = trainer.train_batches(training.seed, training.cutout)
        self._losses: list[Any] = []  # since the last line of metrics, kept on the device

    def init_state(self) -> NetworkState:
        """Combine the given variables with a fresh optimizer state."""
        # Copies, because a step reuses the memory of the state it is given.
        state = as_state(jax.tree.map(jnp.array, self._variables))
        state = state._replace(opt_state=self._trainer.programs.init_opt_state(state.params))
        if self.config.training.calibrate:
            state = self._trainer.evaluator.calibrate(state, self._images)
        return state

    def restore(self, store: CheckpointStore) -> NetworkState:
        """Restore the state from the latest checkpoint; CheckpointError if its shapes differ."""
        given = as_state(self._variables)
        init_opt_state = self._trainer.programs.init_opt_state
        checkpoint = store.restore(
            lambda params: (given.collections, init_opt_state(params)), params_like=given.params
        )
        counters = checkpoint.counters
        with reading_counters(store.folder):
            self.curve = [CurvePoint(int(n), float(accuracy)) for n, accuracy in counters["curve"]]
            # Old checkpoints have no losses.
            self._losses = [np.float32(x) for x in counters.get("losses", [])]
        # Copies, because a step reuses the memory of the state it is given.
        params, state = jax.tree.map(jnp.array, (checkpoint.params, checkpoint.state))
        return NetworkState(params, *state)

    def save(self, store: CheckpointStore, state: NetworkState, step: int) -> None:
        """Save everything that `restore` needs; DivergedError if the loss is not finite."""
        losses = [float(loss) for loss in jax.device_get(self._losses)]
        self._check(step, sum(losses))
        store.save(
            step,
            params=state.params,
            state=(state.collections, state.opt_state),
            key=jax.random.key(self.config.training.seed),
            counters={"curve": [list(point) for point in self.curve], "losses": losses},
            config=self.config,
        )

    def batches(self, state: NetworkState, step: int) -> Prefetcher[Batch]:
        """Return the endless batches from a step on, prepared ahead of time."""
        del state
        return self._images.prefetch(step)

    def step(
        self, state: NetworkState, step: int, batch: Batch, stop: bool
    ) -> tuple[NetworkState, _Outcome]:
        """Make one update."""
        training, rate = self.config.training, self.config.optimizer.learning_rate
        state, loss = self._trainer.step(state, batch, rate, training.seed, step)
        return state, _Outcome(loss, stop)

    def record(self, step: int, batch: Batch, outcome: _Outcome, report: RunReport) -> None:
        """Keep the loss on the device, so that nothing waits for it before the next log line."""
        del step, batch, report
        self._losses.append(outcome.loss)

    def log(self, step: int, report: RunReport) -> None:
        """Log the mean loss since the last call; DivergedError if it is not finite."""
        loss = float(np.mean(jax.device_get(self._losses)))
        self._losses.clear()
        report.metrics.write(step, {"loss": loss})
        self._check(step, loss)
        report.progress.update(step, loss=loss, note=f"top-1 {100 * self.curve[-1].accuracy:.2f}%")

    def evaluate(self, state: NetworkState, step: int) -> Mapping[str, float]:
        """Measure the accuracy on validation images and add it to the curve."""
        accuracy = self._trainer.evaluator.accuracy(state, "validation")
        self.curve.append(CurvePoint(step, accuracy))
        return {"validation/top1": accuracy}

    def _check(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {step} with learning rate"
                f" {self.config.optimizer.learning_rate:g}: try a smaller rate, or"
                " optimizer.clip_norm"
            )
