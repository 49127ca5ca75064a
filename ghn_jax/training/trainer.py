"""The parts of a training run, and its step.

A step takes a state and a meta batch, and returns the state after one update. The loss is the mean
of the architectures' cross-entropies on the same batch of images (docs/method.md, 'Training
protocol'); every device works on its own architectures (`ghn_jax.parallel`).
"""

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypedDict, Unpack

import jax
import numpy as np
import optax

from ghn_jax.arrays import PyTree
from ghn_jax.configuration.validation import check_keys
from ghn_jax.data import Dataset, TrainBatches, load_dataset
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.hypernetworks import Hypernetwork
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.parallel.processes import local_copy, local_devices, replica_mesh, replicate
from ghn_jax.parallel.replica import Replica, ReplicaResult, Work
from ghn_jax.parallel.update import Update
from ghn_jax.programs.cache import ProgramCache, enable_compilation_cache
from ghn_jax.programs.relocation import programs_on
from ghn_jax.tasks import TASKS, Batch, ParameterTerm, Task, norm_penalty
from ghn_jax.training.architecture_sources import ArchitectureSource, create_source
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.meta_batches import MetaBatch, MetaBatchRules, iterate_meta_batches
from ghn_jax.training.optimizers import create_optimizer
from ghn_jax.training.workers import Workers


class Parts(TypedDict, total=False):
    """Parts that `Trainer` creates from the config unless they are passed in.

    Attributes:
        dataset: The data set, by default the config's `data`.
        model: The hypernetwork. Its config must be the config's `ghn`, but its modules may be
            custom ones.
        task: The task of the target networks, by default the config's `task`.
        optimizer: The optimizer of the hypernetwork's parameters, by default the config's
            `optimizer`.
        source: The source of architectures, by default drawn from the config's `space` or read from
            files.
        parameter_terms: Terms added to each network's loss, besides the config's norm penalty.
        programs: The compiled programs of an earlier trainer with the same model and task.
    """

    dataset: Dataset | None
    model: Hypernetwork | None
    task: Task | None
    optimizer: optax.GradientTransformation | None
    source: ArchitectureSource | None
    parameter_terms: Sequence[ParameterTerm]
    programs: "Programs | None"


@dataclasses.dataclass
class TrainState:
    """Everything that changes from step to step, all of which is checkpointed.

    Attributes:
        step: Number of updates made so far.
        ghn_params: Parameters of the hypernetwork, replicated over the devices of the run.
        opt_state: State of the optimizer, also replicated.
        key: Random key from which every step's keys are derived.
        next_architecture: Index in the source of the first architecture not yet used.
    """

    step: int
    ghn_params: PyTree
    opt_state: PyTree
    key: jax.Array
    next_architecture: int


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Attributes:
        losses: Losses of all architectures, in the order of the meta batch.
        finite: Whether each architecture took part in the update.
        seconds: Duration of each phase, for phases that run on several devices the longest one.
        balance: Mean working time of the local devices, divided by the longest.
        stop: Whether any process of the run was asked to stop.
    """

    losses: np.ndarray
    finite: np.ndarray
    seconds: dict[str, float]
    balance: float
    stop: bool


class Programs(NamedTuple):
    """Compiled programs, which trainers with the same GHN config and loss can share."""

    ghn: ProgramCache
    targets: ProgramCache


class Trainer:
    """The parts of a training run and its step.

    Args:
        config: The run's config.
        **parts: Parts to use instead of those that the config describes, see `Parts`.

    Attributes:
        task: The task of the target networks.
        mesh: The mesh of all devices of the run.
        replicas: One replica per local device.

    Raises:
        ValueError: If the data set does not fit the space of architectures or the task, or the
            model does not fit the config.
    """

    def __init__(self, config: ExperimentConfig, **parts: Unpack[Parts]) -> None:
        check_keys("Trainer", parts, (), tuple(Parts.__annotations__))
        training = config.training
        self.model = parts.get("model") or Hypernetwork(config.ghn)
        if self.model.config != config.ghn:
            raise ValueError(f"model is one of {self.model.config}, expected {config.ghn}")
        if training.compilation_cache_dir:
            enable_compilation_cache(training.compilation_cache_dir)
        self.config, data = config, config.data
        self.dataset = parts.get("dataset") or load_dataset(
            data.name, data.data_dir, data.image_size, data.num_channels
        )
        self.task = parts.get("task") or create_task(config)
        check_dataset(config, self.dataset, self.task)
        self._parameter_terms = [*parts.get("parameter_terms", ())]
        if training.norm_penalty:
            self._parameter_terms.append(norm_penalty(training.norm_penalty))
        self.mesh = replica_mesh(training.num_devices)
        threads = training.num_compile_threads
        self.programs = parts.get("programs") or Programs(
            ProgramCache(threads), ProgramCache(threads)
        )
        devices = local_devices(self.mesh)
        self.replicas = [self._create_replica(device) for device in devices]
        self._threads = ThreadPoolExecutor(len(devices), thread_name_prefix="replica")
        self.batches = TrainBatches(self.dataset, config.data.batch_size, training.seed)
        self.source = parts.get("source") or create_source(config)
        self.rules = MetaBatchRules(
            training.meta_batch_size,
            training.max_nodes,
            config.data.batch_size,
            len(devices),
            jax.process_count(),
            jax.process_index(),
        )
        self.optimizer = parts.get("optimizer") or create_optimizer(
            config.optimizer, training.num_steps
        )
        self._update = Update(self.optimizer, self.mesh, training.meta_batch_size)

    def _create_replica(self, device: jax.Device) -> Replica:
        training = self.config.training
        predictor = Predictor(self.model, programs=programs_on(self.programs.ghn, device))
        engine = BlockwiseEngine(
            self.task.loss_fn,
            training.num_threads,
            compute_dtype=training.compute_dtype,
            programs=programs_on(self.programs.targets, device),
        )
        return Replica(device, predictor, engine, self._parameter_terms)

    @property
    def predictor(self) -> Predictor:
        """The predictor of the first local device."""
        return self.replicas[0].predictor

    @property
    def engine(self) -> BlockwiseEngine:
        """The engine of the first local device."""
        return self.replicas[0].engine

    @property
    def num_compilations(self) -> int:
        """Number of programs compiled so far, for the hypernetwork and the targets."""
        return sum(cache.num_compilations for cache in self.programs)

    def init_state(self) -> TrainState:
        """Create the state before the first step."""
        init_key, key = jax.random.split(jax.random.key(self.config.training.seed))
        ghn_params = self.predictor.init(init_key)
        opt_state = jax.jit(self.optimizer.init)(ghn_params)
        return TrainState(
            0, replicate(ghn_params, self.mesh), replicate(opt_state, self.mesh), key, 0
        )

    def local_params(self, state: TrainState) -> PyTree:
        """Return the GHN's parameters on the first local device."""
        return local_copy(state.ghn_params, self.replicas[0].device)

    def meta_batches(self, state: TrainState) -> Generator[MetaBatch]:
        """Yield the meta batches from a state on, without end, prepared ahead of time."""
        num_workers = self.config.training.num_workers
        return iterate_meta_batches(self.source, self.rules, state.next_architecture, num_workers)

    def image_batches(
        self, state: TrainState
    ) -> contextlib.AbstractContextManager[Iterator[Batch]]:
        """Return a context manager of the image batches from a state on, prepared ahead of time."""
        num_workers = self.config.training.num_workers
        if num_workers == 0:
            return self.batches.prefetch(state.step)
        return Workers(self.batches.batch, state.step, num_workers, 2 * num_workers, "images")

    def step(
        self, state: TrainState, meta_batch: MetaBatch, batch: Batch, stop: bool = False
    ) -> tuple[TrainState, StepResult]:
        """Make one update.

        Architectures whose loss or gradient is not finite do not take part in it; if none is left,
        the parameters are unchanged.

        Args:
            state: The state before the step.
            meta_batch: The architectures.
            batch: Images (B, S, S, C) and labels (B,).
            stop: Whether this process was asked to stop.

        Returns:
            The state after the step, and the step's result.
        """
        keys = self._dropout_keys(state, len(meta_batch.indices))

        def compute(replica: Replica, work: Work | None) -> ReplicaResult | None:
            if work is None:
                return None
            ghn_params = local_copy(state.ghn_params, replica.device)
            own_keys = None if keys is None else [keys[i] for i in work.positions]
            return replica.loss_and_grads(ghn_params, work, batch, own_keys)

        results = list(self._threads.map(compute, self.replicas, meta_batch.work))
        start = time.perf_counter()
        positions = [work.positions if work else () for work in meta_batch.work]
        ghn_params, opt_state, totals = self._update(
            state.ghn_params,
            state.opt_state,
            list(zip(positions, results, strict=True)),
            stop,
        )
        seconds, balance = _summarize([r.seconds for r in results if r is not None])
        seconds["update"] = time.perf_counter() - start
        num = len(meta_batch.indices)
        state = TrainState(state.step + 1, ghn_params, opt_state, state.key, meta_batch.next_index)
        return state, StepResult(
            totals.losses[:num], totals.finite[:num], seconds, balance, totals.stop
        )

    def _dropout_keys(self, state: TrainState, num: int) -> Sequence[jax.Array] | None:
        if not self.config.training.target_dropout:
            return None
        return list(jax.random.split(jax.random.fold_in(state.key, state.step), num))


def _summarize(seconds: list[dict[str, float]]) -> tuple[dict[str, float], float]:
    """Return the longest duration of each phase, and how evenly the work was distributed."""
    if not seconds:
        return {}, 1.0
    totals = [sum(parts.values()) for parts in seconds]
    longest = {name: max(parts[name] for parts in seconds) for name in seconds[0]}
    return longest, sum(totals) / len(totals) / max(totals)


def create_task(config: ExperimentConfig) -> Task:
    """Create the task that a config names, for the image and output sizes of its space."""
    space, smoothing = config.space, config.training.label_smoothing
    fields = {field.name for field in dataclasses.fields(TASKS[config.task.name])}
    if smoothing and "label_smoothing" not in fields:
        raise ValueError(
            f"training.label_smoothing is {smoothing}, expected 0 for the task"
            f" {config.task.name!r}, which has none"
        )
    task: Task = TASKS.create(
        config.task,
        input_shape=(space.image_size, space.image_size, space.num_channels),
        num_outputs=space.num_classes,
        label_smoothing=smoothing,
    )
    return task


def check_dataset(config: ExperimentConfig, dataset: Dataset, task: Task | None = None) -> None:
    """Raise ValueError unless space, data set and task agree on image and output sizes."""
    space = config.space
    for name in ("image_size", "num_classes", "num_channels"):
        wanted, found = getattr(space, name), getattr(dataset, name)
        if found not in (wanted, None):  # labels that are no classes fit any width of the output
            raise ValueError(
                f"space.{name} is {wanted}, expected {found} for the data set {dataset.name!r}"
            )
    shape = (dataset.image_size, dataset.image_size, dataset.num_channels)
    if task is not None and tuple(task.input_shape) != shape:
        raise ValueError(
            f"task.input_shape is {task.input_shape}, expected {shape} for the data set"
            f" {dataset.name!r}"
        )
    if task is not None and task.input_dtype != "float32":
        raise ValueError(
            f"task.input_dtype is {task.input_dtype!r}, expected 'float32', that of all images"
        )
    if task is not None and task.num_outputs != space.num_classes:
        raise ValueError(
            f"task.num_outputs is {task.num_outputs}, expected {space.num_classes}, the width of"
            " the networks' output: space.num_classes"
        )
