"""Checkpoints that hold everything a run needs to go on bit for bit, and a GHN needs to be used.

In: parameters, the state of what updates them, the random key, counters and the config. Out: the
folder `workdir/checkpoints/<step>`, written by Orbax under a temporary name and then renamed, so
that an interrupted save leaves the earlier checkpoints as they were. Arrays are stored from host
memory and come back as numpy arrays: a checkpoint written on one kind of device loads on any other.

A run trains a GHN or one network by itself. The folders of a checkpoint have the names of the first
kind whichever it is, since they are a format: checkpoints of earlier versions load.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp

from ghn_jax.training.config import ExperimentConfig

PyTree = Any
"""A nested structure of arrays."""

_FOLDER = "checkpoints"
_FORMAT = 1
# Folders of a checkpoint.
_PARAMS, _STATE, _KEY, _RUN = "ghn_params", "opt_state", "key", "run"
_RUN_KEYS = ("format", "step", "key_impl", "counters", "config", "checksums")


class RunConfig(Protocol):
    """The config of a run: a frozen dataclass that travels as JSON."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Build it from what `to_dict` returned; ValueError if something is wrong."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        ...


class CheckpointError(ValueError):
    """A checkpoint that is missing, unfinished, damaged or of another run's shape."""


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
            config_type: of the runs' configs.
        """
        self._config_type = config_type
        self.folder = pathlib.Path(workdir).absolute() / _FOLDER
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
        )

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
        arrays = {
            _PARAMS: _copy_to_host(params),
            _STATE: _flatten(state),
            _KEY: {"data": _copy_to_host(jax.random.key_data(key))},
        }
        run = {
            "format": _FORMAT,
            "step": step,
            "key_impl": str(jax.random.key_impl(key)),
            "counters": dict(counters),
            "config": config.to_dict(),
            "checksums": {name: _checksums(tree) for name, tree in arrays.items()},
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items[_RUN] = ocp.args.JsonSave(run)
        with self._naming_failures():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def read_config(self, step: int) -> Any:
        """Read the config that a checkpoint was saved with, and nothing else.

        Raises:
            CheckpointError: if there is no such checkpoint, or its config cannot be read.
        """
        path = _find_step(self.folder, step)
        return _build_config(_read(path, arrays=())[_RUN]["config"], path, self._config_type)

    def restore(
        self, init_state_fn: Callable[[PyTree], PyTree], step: int | None = None
    ) -> Checkpoint:
        """Read a checkpoint back.

        Args:
            init_state_fn: parameters -> a fresh state, such as an optimizer's `init`; only traced,
                for the structure, shapes and dtypes of the state.
            step: which checkpoint; None is the latest.

        Returns:
            The checkpoint, bit for bit as it was saved.

        Raises:
            CheckpointError: if there is no such checkpoint, it cannot be read, or its state is not
                like a fresh one.
        """
        self.wait()
        if step is None:
            step = self.latest_step()
            if step is None:
                raise CheckpointError(f"{self.folder} holds no finished checkpoint")
        path = _find_step(self.folder, step)
        items = _read(path, arrays=(_PARAMS, _STATE, _KEY))
        run, params = items[_RUN], items[_PARAMS]
        return Checkpoint(
            step=run["step"],
            params=params,
            state=_unflatten(items[_STATE], jax.eval_shape(init_state_fn, params), path),
            key=jax.random.wrap_key_data(items[_KEY]["data"], impl=run["key_impl"]),
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

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Say which checkpoint is whole when one could not be written, the disk being full."""
        try:
            yield
        # Orbax and TensorStore have many types for what the system refuses.
        except Exception as error:
            reason = str(error).strip() or repr(error)
            # What the system said stands far behind in TensorStore's text.
            is_full = os.strerror(errno.ENOSPC) in reason
            reason = os.strerror(errno.ENOSPC) if is_full else reason.splitlines()[0][:300]
            steps = _finished_steps(self.folder)
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


def load_checkpoint(path: str | pathlib.Path) -> tuple[ExperimentConfig, PyTree]:
    """Read a GHN from nothing but a path; changes nothing on disk.

    Args:
        path: a run's folder (its latest checkpoint is read) or the folder of one checkpoint,
            which may have been copied or renamed.

    Returns:
        The run's config, and the GHN's parameters as nested dictionaries of numpy arrays.

    Raises:
        CheckpointError: if there is no finished checkpoint, or it cannot be read.
    """
    path = _find_checkpoint(path)
    items = _read(path, arrays=(_PARAMS,))
    config = _build_config(items[_RUN]["config"], path, ExperimentConfig)
    return config, items[_PARAMS]


def load_counters(path: str | pathlib.Path) -> dict[str, Any]:
    """Read what the loop had counted when a checkpoint was saved.

    Args:
        path: as `load_checkpoint` takes.

    Returns:
        The counters.

    Raises:
        CheckpointError: if there is no finished checkpoint, or it cannot be read.
    """
    counters: dict[str, Any] = _read(_find_checkpoint(path), arrays=())[_RUN]["counters"]
    return counters


def _find_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(
            f"path is {str(path)!r}, expected the folder of a run or of a checkpoint: there is no"
            " such folder"
        )
    if (path / _RUN).is_dir():
        return path
    folder = path / _FOLDER if (path / _FOLDER).is_dir() else path
    steps = _finished_steps(folder)
    if not steps:
        raise CheckpointError(
            f"path is {str(path)!r}, expected the folder of a run or of a checkpoint: no"
            f" finished checkpoint in {folder}"
        )
    return folder / str(steps[-1])


def _build_config(
    values: Mapping[str, Any], path: pathlib.Path, config_type: type[RunConfig]
) -> Any:
    try:
        return config_type.from_dict(values)
    except ValueError as error:
        raise CheckpointError(
            f"the config in the checkpoint {path} is not valid: {error}"
        ) from error


def _finished_steps(folder: pathlib.Path) -> list[int]:
    # An unfinished checkpoint carries a temporary name, not a number.
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def _find_step(folder: pathlib.Path, step: int) -> pathlib.Path:
    if not (folder / str(step)).is_dir():
        raise CheckpointError(f"{folder} holds no checkpoint of step {step}{_list_others(folder)}")
    return folder / str(step)


def _list_others(folder: pathlib.Path, excluded: str = "") -> str:
    others = [str(step) for step in _finished_steps(folder) if str(step) != excluded]
    return f"; {folder} holds the steps {', '.join(others)}" if others else ""


def _read(path: pathlib.Path, arrays: tuple[str, ...]) -> dict[str, Any]:
    """Return the named folders of arrays and the folder `run` of the checkpoint in `path`."""
    restore: dict[str, Callable[[], Any]] = dict.fromkeys(arrays, ocp.args.StandardRestore)
    restore[_RUN] = ocp.args.JsonRestore
    try:
        for item in restore:
            # Orbax gives None for an item that is not there.
            if not (path / item).is_dir():
                raise FileNotFoundError(f"{path / item} is missing")
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = checkpointer.restore(
                path, args=ocp.args.Composite(**{name: arg() for name, arg in restore.items()})
            )
        read = {name: items[name] for name in restore}
        missing = [key for key in _RUN_KEYS if key not in read[_RUN]]
        if missing:
            raise ValueError(f"{path / _RUN} lacks {', '.join(missing)}")
        for name in arrays:
            _check_sums(name, read[name], read[_RUN]["checksums"][name])
    # Orbax and TensorStore raise many types for damaged files; all mean the same to the caller.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {reason[:300]})"
            f"{_list_others(path.parent, path.name)}; delete the damaged one to go on from another"
        ) from error
    return read


def _copy_to_host(tree: PyTree) -> PyTree:
    # A copy: the caller may donate the arrays to the next step while the files are written.
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def _flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """Return the leaves by their paths: optax's nested tuples do not survive as files."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(_copy_to_host(tree))
    return {_path_name(path): leaf for path, leaf in leaves}


def _checksums(tree: PyTree) -> dict[str, int]:
    # TensorStore notices a file cut short, but not a bit changed in the middle of an array.
    return {
        name: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        for name, leaf in _flatten(tree).items()
    }


def _check_sums(item: str, tree: PyTree, expected: Mapping[str, int]) -> None:
    actual = _checksums(tree)
    for name in sorted(actual | dict(expected)):
        if actual.get(name) != expected.get(name):
            raise ValueError(f"{item}/{name} does not have the checksum it was saved with")


def _path_name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _unflatten(leaves: dict[str, np.ndarray], template: PyTree, path: pathlib.Path) -> PyTree:
    expected, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [_path_name(leaf_path) for leaf_path, _ in expected]
    for name in sorted(set(names) ^ set(leaves)):
        where = "the checkpoint" if name in leaves else "the template"
        raise CheckpointError(
            f"{_STATE} of {path} does not fit: {name} is only in {where}; expected the optimizer"
            " and the parameters of the run that saved it"
        )
    for name, (_, leaf) in zip(names, expected, strict=True):
        saved = leaves[name]
        if saved.shape != leaf.shape or saved.dtype != leaf.dtype:
            raise CheckpointError(
                f"{_STATE} of {path} does not fit: {name} has shape {saved.shape} and dtype"
                f" {saved.dtype}, expected {leaf.shape} and {leaf.dtype}"
            )
    return jax.tree.unflatten(structure, [leaves[name] for name in names])
