"""The contents of a checkpoint's folder, and how they are read and checked.

Arrays are stored from host memory and come back as numpy arrays: a checkpoint written on one kind
of device loads on any other. A run trains a GHN or one network by itself; the folders have the
names of the first kind whichever it is, since they are a format: checkpoints of earlier versions
load.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ghn_jax.arrays import PyTree
from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import (
    check_choice,
    check_count,
    check_instance,
    describe_value,
    shorten,
)
from ghn_jax.training.event_loops import patient_loops

FOLDER = "checkpoints"
_FORMAT = 1
# Folders of a checkpoint.
PARAMS, STATE, KEY, RUN = "ghn_params", "opt_state", "key", "run"
_RUN_KEYS = ("format", "step", "key_impl", "counters", "config", "checksums")
_KEY_IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")
_LARGEST_RUN = 1 << 26  # bytes of the JSON; that of a network's curve of a million points has 20 MB


class CheckpointError(ValueError):
    """A checkpoint that is missing, unfinished, damaged or of another run's shape."""


def find_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
    """Return the folder of the checkpoint that a path means: itself, or the latest of a run."""
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(
            f"path is {str(path)!r}, expected the folder of a run or of a checkpoint: there is no"
            " such folder"
        )
    if (path / RUN).is_dir():
        return path
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = finished_steps(folder)
    if not steps:
        raise CheckpointError(
            f"path is {str(path)!r}, expected the folder of a run or of a checkpoint: no"
            f" finished checkpoint in {folder}"
        )
    return folder / str(steps[-1])


def finished_steps(folder: pathlib.Path) -> list[int]:
    """Return the steps of the finished checkpoints in a folder, ascending; none if it is gone."""
    # An unfinished checkpoint carries a temporary name, not a number.
    if not folder.is_dir():
        return []
    numbered = [entry for entry in folder.iterdir() if entry.name.isdecimal()]
    return sorted(int(entry.name) for entry in numbered if not _is_half_deleted(entry))


def _is_half_deleted(path: pathlib.Path) -> bool:
    """Whether files are gone, as after a kill while an earlier version deleted the checkpoint.

    Whether files are damaged is another matter, which reading them shows.
    """
    try:
        _check_size(path / RUN)
        run = json.loads((path / RUN / "metadata").read_text(encoding="utf-8"))
        items = [name for name, sums in run["checksums"].items() if sums]
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    # An evaluation may need no more than the parameters, so a released GHN may lack the others.
    return PARAMS in items and not (path / PARAMS / "manifest.ocdbt").is_file()


def find_step(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Return the folder of a step's checkpoint, or raise CheckpointError."""
    if not (folder / str(step)).is_dir():
        raise CheckpointError(f"{folder} holds no checkpoint of step {step}{_list_others(folder)}")
    return folder / str(step)


def _list_others(folder: pathlib.Path, excluded: str = "") -> str:
    others = [str(step) for step in finished_steps(folder) if str(step) != excluded]
    return f"; {folder} holds the steps {', '.join(others)}" if others else ""


CheckFn = Callable[[Mapping[str, Any], Mapping[str, PyTree]], None]
"""Takes a checkpoint's JSON and, by folder, the shapes and dtypes of the arrays that it stores."""


def read_items(
    path: pathlib.Path, arrays: tuple[str, ...], check_fn: CheckFn | None = None
) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: folder of the checkpoint.
        arrays: which of its folders of arrays are read, besides `run`.
        check_fn: called before any array is read, since a few bytes can declare one of any size;
            raises CheckpointError if the arrays are not those that are expected.

    Returns:
        What lies in each folder; arrays are numpy's, the state's still by their paths.

    Raises:
        CheckpointError: if something is missing or damaged; names the other checkpoints there.
    """
    with _naming_checkpoint(path):
        _check_size(path / RUN)
        run = _restore_items(path, {RUN: ocp.args.JsonRestore})[RUN]
        try:
            _check_run(run)
        except ValueError as error:
            raise ValueError(f"{path / RUN}: {error}") from error
        stored = [name for name in arrays if run["checksums"][name]]  # others have no arrays
    if check_fn is not None:
        with _naming_checkpoint(path):
            shapes = {name: _stored_shapes(path, name) for name in stored}
        check_fn(run, {name: shapes.get(name, {}) for name in arrays})
    with _naming_checkpoint(path):
        found = _restore_items(path, dict.fromkeys(stored, ocp.args.StandardRestore))
        for name in stored:
            _check_sums(name, found[name], run["checksums"][name])
    return {RUN: run, **{name: found.get(name, {}) for name in arrays}}


@contextlib.contextmanager
def _naming_checkpoint(path: pathlib.Path) -> Iterator[None]:
    """Raise CheckpointError with the checkpoint's folder, and the others there, for any error."""
    try:
        with patient_loops():
            yield
    # Orbax and TensorStore raise many types for damaged files; all mean the same to the caller.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {reason[:500]})"
            f"{_list_others(path.parent, path.name)}; delete the damaged one to go on from another"
        ) from error


def _check_size(folder: pathlib.Path) -> None:
    """Raise ValueError if the JSON in a folder is too long to be a run's."""
    size = (folder / "metadata").stat().st_size if (folder / "metadata").is_file() else 0
    if size > _LARGEST_RUN:
        raise ValueError(f"{folder} has {size} bytes, expected at most {_LARGEST_RUN}")


def _check_run(run: Any) -> None:
    """Raise ValueError unless a checkpoint's JSON has the values that this version writes."""
    if not isinstance(run, Mapping):
        raise ValueError(f"it is {describe_value(run)}, expected an object")
    missing = [key for key in _RUN_KEYS if key not in run]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if type(run["format"]) is not int or run["format"] != _FORMAT:
        raise ValueError(
            f"format is {describe_value(run['format'])}, expected {_FORMAT}: it was written by"
            " another version of ghn_jax"
        )
    check_count("step", run["step"], limits.COUNT)
    check_choice("key_impl", run["key_impl"], _KEY_IMPLS)
    for name in ("counters", "config", "checksums"):
        check_instance(name, run[name], Mapping, "an object")
    for item in (PARAMS, STATE, KEY):
        sums = run["checksums"].get(item)
        check_instance(f"checksums.{item}", sums, Mapping, "an object")
        for name, value in sums.items():
            check_count(f"checksums.{item}.{describe_value(name)}", value, 2**32 - 1)


def _restore_items(path: pathlib.Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    for name in arguments:
        _check_folder(path / name)
    if not arguments:
        return {}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = checkpointer.restore(
            path, args=ocp.args.Composite(**{name: arg() for name, arg in arguments.items()})
        )
    return {name: items[name] for name in arguments}


def _stored_shapes(path: pathlib.Path, name: str) -> PyTree:
    """Return the tree of arrays that a folder declares, as `jax.ShapeDtypeStruct`s."""
    _check_folder(path / name)
    handler = ocp.StandardCheckpointHandler()
    try:
        tree = handler.metadata(path / name).tree
    finally:
        handler.close()
    return jax.tree_util.tree_map_with_path(_stored_shape, tree)


def _stored_shape(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
    shape, chunk = tuple(leaf.shape), tuple(leaf.storage.chunk_shape)
    # A chunk is decoded as a whole.
    if any(part > max(size, 1) for part, size in zip(chunk, shape, strict=True)):
        raise ValueError(f"{_path_name(path)} of shape {shape} has chunks of shape {chunk}")
    return jax.ShapeDtypeStruct(shape, leaf.dtype)


def _check_folder(folder: pathlib.Path) -> None:
    # Orbax gives None for an item that is not there.
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing")


def pack_items(
    step: int,
    params: PyTree,
    state: PyTree,
    key: jax.Array,
    counters: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what Orbax saves in each folder of a checkpoint; arrays are copied to the host."""
    arrays = {
        PARAMS: _copy_to_host(params),
        STATE: _flatten(state),
        KEY: {"data": _copy_to_host(jax.random.key_data(key))},
    }
    run = {
        "format": _FORMAT,
        "step": step,
        "key_impl": str(jax.random.key_impl(key)),
        "counters": dict(counters),
        "config": config,
        "checksums": {name: _checksums(tree) for name, tree in arrays.items()},
    }
    # Orbax refuses what has no arrays, such as the state of plain gradient descent.
    items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items() if tree}
    items[RUN] = ocp.args.JsonSave(run)
    return items


def _copy_to_host(tree: PyTree) -> PyTree:
    # A copy: the caller may donate the arrays to the next step while the files are written.
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def _flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """Return the leaves by their paths: optax's nested tuples do not survive as files."""
    return _by_path(_copy_to_host(tree))


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


def check_stored(item: str, stored: PyTree, template: PyTree, path: pathlib.Path) -> None:
    """Check that a folder of a checkpoint stores the arrays that are expected.

    Args:
        item: name of the folder.
        stored: shapes and dtypes of what it stores, in any structure with the same paths.
        template: those that are expected.
        path: folder of the checkpoint, for errors.

    Raises:
        CheckpointError: if an array is missing, unknown or of another shape or dtype.
    """
    leaves, expected = _by_path(stored), _by_path(template)
    for name in sorted(set(expected) ^ set(leaves)):
        where = "the checkpoint" if name in leaves else "the template"
        raise CheckpointError(
            f"{item} of {path} does not fit: {shorten(name, 200)} is only in {where}; expected the"
            " optimizer and the parameters of the run that saved it"
        )
    for name, leaf in expected.items():
        saved = leaves[name]
        if saved.shape != leaf.shape or saved.dtype != leaf.dtype:
            raise CheckpointError(
                f"{item} of {path} does not fit: {name} has shape {saved.shape} and dtype"
                f" {saved.dtype}, expected {leaf.shape} and {leaf.dtype}"
            )


def _by_path(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_path_name(path): leaf for path, leaf in leaves}


def unflatten_like(leaves: Mapping[str, np.ndarray], template: PyTree) -> PyTree:
    """Put a state together again from its arrays by their paths, which are the template's."""
    expected, structure = jax.tree_util.tree_flatten_with_path(template)
    return jax.tree.unflatten(structure, [leaves[_path_name(path)] for path, _ in expected])
