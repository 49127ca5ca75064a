"""The loop of every run, whether it trains a GHN or one network.

A `Training` knows how to make a step and what to report and save of it; a `RunSchedule` says when.
The loop returns the last state and writes checkpoints and metrics to the run's folder. A run
continues bit for bit from the folder's latest checkpoint if there is one; SIGTERM and Ctrl-C save
and stop it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from ghn_jax.parallel.peers import needing_peers
from ghn_jax.training.checkpoint_files import FOLDER, CheckpointError, finished_steps
from ghn_jax.training.checkpoints import CheckpointStore, RunConfig
from ghn_jax.training.folder_lock import lock_folder
from ghn_jax.training.interruption import RESUME_STATUS, InterruptedRunError, StopRequest
from ghn_jax.training.metrics import MetricWriter, NoMetrics, TrainingProgress

_LOGGER = logging.getLogger(__name__)
State = TypeVar("State")
StepBatch = TypeVar("StepBatch")


class StepOutcome(Protocol):
    """What a step reports."""

    @property
    def stop(self) -> bool:
        """Whether the run stops after it: a process of the run was asked to."""
        ...


Outcome = TypeVar("Outcome", bound=StepOutcome)


class RunReport(NamedTuple):
    """Where a run's numbers go: to disk, and to the terminal."""

    metrics: MetricWriter | NoMetrics
    progress: TrainingProgress


@dataclasses.dataclass(frozen=True)
class RunSchedule:
    """When a run does what, in steps.

    Attributes:
        num_steps: Number of updates of the whole run.
        log_every: Steps between lines of metrics; there is one after the last step, too.
        checkpoint_every: Steps between checkpoints; None saves after the last step only.
        keep_checkpoints: Number of most recent checkpoints kept.
        evaluate_every: Steps between evaluations; None makes none in between.
        evaluates_ends: Whether the run is evaluated before the first and after the last step;
            otherwise not even where `evaluate_every` says so.
    """

    num_steps: int
    log_every: int
    checkpoint_every: int | None
    keep_checkpoints: int
    evaluate_every: int | None
    evaluates_ends: bool

    def logs(self, step: int) -> bool:
        """Whether metrics are written after so many steps."""
        return step == self.num_steps or step % self.log_every == 0

    def evaluates(self, step: int) -> bool:
        """Whether the run is evaluated after so many steps."""
        if step in (0, self.num_steps):
            return self.evaluates_ends
        return self.evaluate_every is not None and step % self.evaluate_every == 0

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is saved after so many steps."""
        if step == self.num_steps:
            return True
        return self.checkpoint_every is not None and step % self.checkpoint_every == 0


class Training(Protocol[State, StepBatch, Outcome]):
    """What differs between runs."""

    @property
    def config(self) -> RunConfig:
        """The run's config, which its checkpoints hold."""
        ...

    @property
    def may_change(self) -> Collection[str]:
        """Sections and fields that a run may go on with other values of: "training.log_every"."""
        ...

    def init_state(self) -> State:
        """The state before the first step."""
        ...

    def restore(self, store: CheckpointStore) -> State:
        """The state of the latest checkpoint; what was counted for reports goes on, too."""
        ...

    def batches(
        self, state: State, step: int
    ) -> contextlib.AbstractContextManager[Iterator[StepBatch]]:
        """What the steps from one on are made of, without end."""
        ...

    def step(self, state: State, step: int, batch: StepBatch, stop: bool) -> tuple[State, Outcome]:
        """Make update number `step`, from 0; `stop` is whether this process was asked to stop."""
        ...

    def record(self, step: int, batch: StepBatch, outcome: Outcome, report: RunReport) -> None:
        """Count what the last of so many steps did, and show it."""
        ...

    def log(self, step: int, report: RunReport) -> None:
        """Write the metrics of the steps since the last time."""
        ...

    def evaluate(self, state: State, step: int) -> Mapping[str, float]:
        """Measure the state after so many steps: metrics by name."""
        ...

    def save(self, store: CheckpointStore, state: State, step: int) -> None:
        """Save all that `restore` needs."""
        ...


def run_training(
    training: Training[State, StepBatch, Outcome],
    schedule: RunSchedule,
    workdir: str | pathlib.Path | None,
    *,
    quiet: bool = False,
) -> State:
    """Train to the last step, from the folder's latest checkpoint if it has one.

    Args:
        training: The training to run.
        schedule: When to log, evaluate and save.
        workdir: Folder for checkpoints and metrics; None writes nothing.
        quiet: Whether no progress is shown. Of several processes the first one shows it, and
            writes metrics; all take part in checkpoints.

    Returns:
        The last state.

    Raises:
        CheckpointError: If the folder holds a run with another config, or a checkpoint could not be
            written.
        FolderInUseError: If another run writes to the folder.
        InterruptedRunError: If SIGTERM or SIGINT was received, be it in the last step or while its
            checkpoint is written; the run is saved before.
    """
    describe = functools.partial(_describe_saved, workdir)
    with StopRequest() as request, needing_peers(describe, RESUME_STATUS, InterruptedRunError):
        state = _run(training, schedule, workdir, request, quiet)
    if request.is_made:
        raise InterruptedRunError(
            f"asked to stop: all {schedule.num_steps} steps are made"
            + ("" if workdir is None else f" and saved in {workdir}; the same command goes on")
        )
    return state


def lock_run(workdir: str | pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Hold a run's folder; of several processes, the first one does.

    Args:
        workdir: The run's folder, created if missing.

    Returns:
        A context manager, which raises FolderInUseError if another run has the folder.
    """
    return contextlib.nullcontext() if jax.process_index() else lock_folder(workdir)


def _run(
    training: Training[State, StepBatch, Outcome],
    schedule: RunSchedule,
    workdir: str | pathlib.Path | None,
    request: StopRequest,
    quiet: bool,
) -> State:
    is_first = jax.process_index() == 0
    quiet = quiet or not is_first
    with contextlib.ExitStack() as stack:
        store, resume_step = None, None
        if workdir is not None:
            stack.enter_context(lock_run(workdir))
            store = CheckpointStore(workdir, schedule.keep_checkpoints, type(training.config))
            stack.enter_context(store)
            resume_step = store.latest_step()

        if store is None or resume_step is None:
            state, step = training.init_state(), 0
        else:
            check_same_config(store, training.config, training.may_change)
            state, step = training.restore(store), resume_step
            if not quiet:
                _LOGGER.info("going on from step %d of %s", step, store.folder)
        if step >= schedule.num_steps:
            return state

        metrics: MetricWriter | NoMetrics = NoMetrics()
        if workdir is not None and is_first:
            metrics = stack.enter_context(MetricWriter(workdir, resume_step))
        if resume_step is None and schedule.evaluates(step):
            metrics.write(step, training.evaluate(state, step))
        progress = stack.enter_context(TrainingProgress(schedule.num_steps, step, quiet=quiet))
        report = RunReport(metrics, progress)

        if request.is_made and jax.process_count() == 1:  # several stop together, after a step
            if store is not None and resume_step is None:
                training.save(store, state, step)
            _stop(store, step, schedule.num_steps)
        batches = stack.enter_context(training.batches(state, step))
        while step < schedule.num_steps:
            batch = next(batches)
            state, outcome = training.step(state, step, batch, request.is_made)
            step += 1
            training.record(step, batch, outcome, report)
            if schedule.logs(step):
                training.log(step, report)
            if schedule.evaluates(step):
                metrics.write(step, training.evaluate(state, step))
            if store is not None and (schedule.saves(step) or outcome.stop):
                training.save(store, state, step)
            if outcome.stop and step < schedule.num_steps:
                _stop(store, step, schedule.num_steps)
    return state


def check_same_config(
    store: CheckpointStore, config: RunConfig, may_change: Collection[str]
) -> None:
    """Check that a run continues with the config it began with.

    Args:
        store: The run's checkpoints, the latest of which has the config it began with.
        config: The config to continue with.
        may_change: Sections and fields that may differ.

    Raises:
        CheckpointError: If another field differs; the message names it.
    """
    step = store.latest_step()
    assert step is not None
    began = _flatten_fields(store.read_config(step).to_dict())
    for name, value in _flatten_fields(config.to_dict()).items():
        if began.get(name) == value or not {name, name.partition(".")[0]}.isdisjoint(may_change):
            continue
        raise CheckpointError(
            f"{store.folder} holds a run with {name} = {began.get(name)!r}, but the config says"
            f" {value!r}: use another --workdir, or the run's config"
        )


def _flatten_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Values by section and field, "training.seed", or by field where there is no section."""
    flat = {}
    for section, value in config.items():
        fields = value if isinstance(value, dict) else {"": value}
        flat.update({f"{section}.{name}".rstrip("."): field for name, field in fields.items()})
    return flat


def _describe_saved(workdir: str | pathlib.Path | None) -> str:
    if workdir is None:
        return "nothing is saved, for want of a work directory"
    folder = pathlib.Path(workdir).absolute() / FOLDER
    steps = finished_steps(folder)
    return f"step {steps[-1]} is saved in {folder}" if steps else f"nothing is saved in {folder}"


def _stop(store: CheckpointStore | None, step: int, num_steps: int) -> None:
    """Raise InterruptedRunError once the checkpoint is whole."""
    if store is None:
        raise InterruptedRunError(
            f"asked to stop at step {step} of {num_steps}: nothing is saved, for want of a work"
            " directory"
        )
    store.wait()
    raise InterruptedRunError(
        f"asked to stop: step {step} of {num_steps} is saved in {store.folder}; the same command"
        " goes on from there"
    )
