"""Checkpoints with everything that is needed to resume a run bit for bit, and to use its GHN.

A checkpoint holds parameters, optimizer state, the random key, counters and the config. Orbax
writes it to the folder `workdir/checkpoints/<step>` under a temporary name and then renames it, so
an interrupted save leaves earlier checkpoints intact.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import jax
import orbax.checkpoint as ocp

from ghn_jax.arrays import PyTree
from ghn_jax.configuration.validation import shorten
from ghn_jax.training.checkpoint_files import (
    FOLDER,
    KEY,
    PARAMS,
    RUN,
    STATE,
    CheckpointError,
    check_stored,
    find_checkpoint,
    find_step,
    finished_steps,
    pack_items,
    read_items,
    unflatten_like,
)
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.event_loops import patient_loops

_SUPERSEDED = "superseded"  # a folder in that of the checkpoints, for the time of a deletion


class RunConfig(Protocol):
    """The config of a run: a frozen dataclass that travels as JSON.

    Attributes:
        SECTIONS: names of the sections that every checkpoint has, those of earlier versions, too.
    """

    SECTIONS: ClassVar[tuple[str, ...]]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Build it from what `to_dict` returned; ValueError if something is wrong."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        ...


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run after some steps.

    Attributes:
        step: number of updates made.
        params: parameters of the GHN or the network, nested dictionaries of numpy arrays.
        state: what else an update changes: the optimizer's state, running statistics.
        key: random key, as `jax.random.key` makes it.
        counters: what else the run counts (position in the data, skipped architectures, ...).
        config: the run's config, of the store's type.
    """

    step: int
    params: PyTree
    state: PyTree
    key: jax.Array
    counters: dict[str, Any]
    config: Any


class CheckpointStore:
    """The checkpoints of one run; a context manager that finishes pending saves on exit."""

    def __init__(
        self,
        workdir: str | pathlib.Path,
        keep: int = 3,
        config_type: type[RunConfig] = ExperimentConfig,
    ) -> None:
        """Open the checkpoints of a run, removing what interrupted saves left behind.

        Only the process that trains may open a store; `load_checkpoint` reads without touching.

        Args:
            workdir: folder of the run, created if missing.
            keep: number of most recent checkpoints kept.
            config_type: the type of the run's config.

        Raises:
            CheckpointError: if what Orbax notes about a checkpoint is damaged.
        """
        self._config_type = config_type
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        self._remove_superseded()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            cleanup_tmp_directories=True,
            # Renamed before it is deleted, so that a kill leaves no half under its number.
            todelete_subdir=_SUPERSEDED,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError:
            raise  # which names what the system refuses
        # Of the metadata that Orbax keeps beside each checkpoint, it raises many types.
        except Exception as error:
            raise CheckpointError(
                f"the checkpoints in {self.folder} cannot be read ({type(error).__name__}:"
                f" {shorten(error)}); delete the damaged one to go on from another"
            ) from error

    def steps(self) -> tuple[int, ...]:
        """Return the steps of all finished checkpoints, ascending."""
        return tuple(sorted(self._manager.all_steps()))

    def latest_step(self) -> int | None:
        """Return the step of the latest finished checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        *,
        params: PyTree,
        state: PyTree,
        key: jax.Array,
        counters: Mapping[str, Any],
        config: RunConfig,
    ) -> None:
        """Save a checkpoint; files are written in the background after the arrays are copied.

        Args:
            step: number of updates made; later than every saved step.
            params: nested dictionaries of arrays.
            state: any structure of arrays.
            key: a key made by `jax.random.key`.
            counters: values that JSON can hold.
            config: the run's config.

        Raises:
            ValueError: if `step` is not later than the latest checkpoint, or `counters` holds what
                JSON cannot.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(
                f"step is {step}, expected more than {latest}, the latest checkpoint in"
                f" {self.folder}"
            )
        try:
            json.dumps(dict(counters))
        except TypeError as error:
            raise ValueError(
                f"counters is {dict(counters)!r}, expected values that JSON can hold: {error}"
            ) from error
        self._check_folder()
        items = pack_items(step, params, state, key, counters, config.to_dict())
        with self._naming_failures():
            self._manager.save(step, args=ocp.args.Composite(**items))
        self._remove_superseded()

    def read_config(self, step: int) -> Any:
        """Read the config that a checkpoint was saved with, and nothing else.

        Raises:
            CheckpointError: if there is no such checkpoint, or its config cannot be read.
        """
        path = find_step(self.folder, step)
        return _build_config(read_items(path, arrays=())[RUN]["config"], path, self._config_type)

    def restore(
        self,
        init_state_fn: Callable[[PyTree], PyTree],
        step: int | None = None,
        params_like: PyTree | None = None,
    ) -> Checkpoint:
        """Read a checkpoint back.

        Args:
            init_state_fn: parameters -> a fresh state, such as an optimizer's `init`; only traced,
                for the structure, shapes and dtypes of the state.
            step: which checkpoint; None is the latest.
            params_like: parameters with the shapes and dtypes that are expected; None takes those
                that the checkpoint has.

        Returns:
            The checkpoint, bit for bit as it was saved.

        Raises:
            CheckpointError: if there is no such checkpoint, it cannot be read, its parameters are
                not as expected, or its state is not like a fresh one.
        """
        self.wait()
        if step is None:
            step = self.latest_step()
            if step is None:
                raise CheckpointError(f"{self.folder} holds no finished checkpoint")
        path = find_step(self.folder, step)

        def check(run: Mapping[str, Any], stored: Mapping[str, PyTree]) -> None:
            if params_like is not None:
                check_stored(PARAMS, stored[PARAMS], params_like, path)
            state = jax.eval_shape(init_state_fn, stored[PARAMS])
            check_stored(STATE, stored[STATE], state, path)
            _check_key(stored[KEY], run["key_impl"], path)

        items = read_items(path, (PARAMS, STATE, KEY), check)
        run, params = items[RUN], items[PARAMS]
        return Checkpoint(
            step=run["step"],
            params=params,
            state=unflatten_like(items[STATE], jax.eval_shape(init_state_fn, params)),
            key=jax.random.wrap_key_data(items[KEY]["data"], impl=run["key_impl"]),
            counters=run["counters"],
            config=_build_config(run["config"], path, self._config_type),
        )

    def wait(self) -> None:
        """Wait until pending saves are on disk.

        Raises:
            CheckpointError: if one could not be written.
        """
        with self._naming_failures():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish pending saves and release the background threads.

        Raises:
            CheckpointError: if one could not be written.
        """
        with self._naming_failures():
            self._manager.close()
        self._remove_superseded()
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                (self.folder / _SUPERSEDED).rmdir()

    def _remove_superseded(self) -> None:
        """Delete checkpoints that newer ones replaced; the folder of them stays for the next."""
        if jax.process_index() == 0 and (folder := self.folder / _SUPERSEDED).is_dir():
            for path in folder.iterdir():
                shutil.rmtree(path, ignore_errors=True)

    def _check_folder(self) -> None:
        """Raise CheckpointError if the folder was removed: Orbax would make it anew."""
        if not self.folder.is_dir():
            raise CheckpointError(
                f"{self.folder} was removed during the run: the run stops, with nothing saved"
            )

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Say which checkpoint is whole when one could not be written, the disk being full."""
        try:
            with patient_loops():
                yield
        # Orbax and TensorStore have many types for what the system refuses.
        except Exception as error:
            self._check_folder()
            reason = str(error).strip() or repr(error)
            # What the system said stands far behind in TensorStore's text.
            is_full = os.strerror(errno.ENOSPC) in reason
            reason = os.strerror(errno.ENOSPC) if is_full else reason.splitlines()[0][:300]
            steps = finished_steps(self.folder)
            kept = f"the one of step {steps[-1]} is whole" if steps else "there is no other yet"
            advice = "make room, then start the same command again" if is_full else "try again"
            raise CheckpointError(
                f"a checkpoint could not be written to {self.folder} ({type(error).__name__}:"
                f" {reason}); {kept}: {advice}"
            ) from error

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load_checkpoint(
    path: str | pathlib.Path,
    expected_fn: Callable[[ExperimentConfig, PyTree], PyTree] | None = None,
) -> tuple[ExperimentConfig, PyTree]:
    """Read a GHN from nothing but a path; changes nothing on disk.

    Args:
        path: a run's folder (its latest checkpoint is read) or the folder of one checkpoint,
            which may have been copied or renamed.
        expected_fn: the run's config, and the shapes of the parameters in the checkpoint -> the
            shapes that are expected; None expects those.

    Returns:
        The run's config, and the GHN's parameters as nested dictionaries of numpy arrays.

    Raises:
        CheckpointError: if there is no finished checkpoint, it cannot be read, or its parameters
            are not as expected.
    """
    folder = find_checkpoint(path)

    def check(run: Mapping[str, Any], stored: Mapping[str, PyTree]) -> None:
        config = _build_config(run["config"], folder, ExperimentConfig)
        if expected_fn is not None:
            check_stored(PARAMS, stored[PARAMS], expected_fn(config, stored[PARAMS]), folder)

    items = read_items(folder, (PARAMS,), check)
    return _build_config(items[RUN]["config"], folder, ExperimentConfig), items[PARAMS]


@contextlib.contextmanager
def reading_counters(folder: pathlib.Path) -> Iterator[None]:
    """Name the checkpoint's folder where its counters are not those that the reader saves.

    Raises:
        CheckpointError: if the block fails to read them.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise CheckpointError(
            f"the counters in the latest checkpoint of {folder} are not those of this kind of run"
            f" ({reason})"
        ) from error


def load_counters(path: str | pathlib.Path) -> dict[str, Any]:
    """Read what the loop had counted when a checkpoint was saved.

    Args:
        path: as `load_checkpoint` takes.

    Returns:
        The counters.

    Raises:
        CheckpointError: if there is no finished checkpoint, or it cannot be read.
    """
    counters: dict[str, Any] = read_items(find_checkpoint(path), arrays=())[RUN]["counters"]
    return counters


def _check_key(stored: PyTree, key_impl: str, path: pathlib.Path) -> None:
    expected = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=key_impl)))
    try:
        check_stored(KEY, stored, {"data": expected}, path)
    except CheckpointError as error:
        raise CheckpointError(
            f"the random key in the checkpoint {path} is not one of {key_impl}: {error}"
        ) from error


def _build_config(
    values: Mapping[str, Any], path: pathlib.Path, config_type: type[RunConfig]
) -> Any:
    # Checkpoints have every section of their version; what came later has a default.
    missing = [name for name in config_type.SECTIONS if name not in values]
    if missing:
        raise CheckpointError(
            f"the config in the checkpoint {path} lacks {', '.join(missing)}, expected every"
            " section of a run's"
        )
    try:
        return config_type.from_dict(values)
    except ValueError as error:
        raise CheckpointError(
            f"the config in the checkpoint {path} is not valid: {shorten(error)}"
        ) from error
