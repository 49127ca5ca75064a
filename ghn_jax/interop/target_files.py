"""Predicted parameters as files: `.safetensors` for PyTorch, `.npz` for everything else.

In: a plan and the arrays of its tensors. Out: a file with PyTorch's names and layouts, which
torchvision's `ResNet` or the original's `Network` loads, or with our own paths and layouts. The
round trip is exact, since only axes are reordered.

PyTorch's state dicts also hold the running statistics of batch norms. A GHN does not predict those,
so they are not written: load with `strict=False`, and let the norms use the batch's statistics.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.configuration.validation import shorten
from ghn_jax.data.array_files import read_arrays
from ghn_jax.deepnets1m.parameter_names import torch_parameter_names
from ghn_jax.graphs.schema import ParameterTensor
from ghn_jax.targets.plan import Plan

SUFFIXES = (".npz", ".safetensors")


def to_torch_layout(array: np.ndarray, tensor: ParameterTensor) -> np.ndarray:
    """Reorder the axes of a parameter: (kh, kw, in, out) -> (out, in, kh, kw).

    Args:
        array: the parameter in our layout.
        tensor: the description of the parameter.

    Returns:
        A view in PyTorch's layout.
    """
    return np.transpose(array, _torch_axes(tensor))


def from_torch_layout(array: np.ndarray, tensor: ParameterTensor) -> np.ndarray:
    """Invert `to_torch_layout`."""
    return np.transpose(array, np.argsort(_torch_axes(tensor)))


def to_target_state_dict(plan: Plan, arrays: Sequence[Any]) -> dict[str, np.ndarray]:
    """Name a network's parameters as PyTorch does.

    Args:
        plan: the plan of an architecture of the DeepNets space, or of a ResNet.
        arrays: arrays in the order and shapes of `plan.tensors`.

    Returns:
        Contiguous arrays in PyTorch's layouts, by their `state_dict` names.

    Raises:
        ValueError: if the plan describes another kind of network, which has no such names.
    """
    names = torch_parameter_names(plan)
    return {
        name: np.ascontiguousarray(to_torch_layout(np.asarray(array), tensor))
        for name, tensor, array in zip(names, plan.tensors, arrays, strict=True)
    }


def from_target_state_dict(plan: Plan, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Invert `to_target_state_dict`.

    Args:
        plan: the plan of the same network.
        state: PyTorch's tensors by name; running statistics are ignored.

    Returns:
        Arrays in the order, shapes and layouts of `plan.tensors`.

    Raises:
        ValueError: if tensors are missing, unknown or of the wrong shape; it names all of them.
    """
    names = torch_parameter_names(plan)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    given = {name for name in state if not name.endswith(statistics)}
    problems = [f"lacks {name}" for name in names if name not in given]
    problems += [f"has the unknown {name}" for name in sorted(given - set(names))]
    for name, tensor in zip(names, plan.tensors, strict=True):
        expected = tuple(tensor.shape[axis] for axis in _torch_axes(tensor))
        if name in given and state[name].shape != expected:
            problems.append(f"has {name} of shape {state[name].shape}, expected {expected}")
    if problems:
        raise ValueError(f"state {'; '.join(problems)}")
    return [
        np.ascontiguousarray(from_torch_layout(state[name], tensor))
        for name, tensor in zip(names, plan.tensors, strict=True)
    ]


def save_target_params(path: str | os.PathLike[str], plan: Plan, arrays: Sequence[Any]) -> None:
    """Write a network's parameters; a reader never sees half a file.

    Args:
        path: a `.safetensors` file, for PyTorch's names and layouts, or an `.npz` file, for our
            paths, joined with "/", and layouts. An existing file is replaced.
        plan: the network's plan.
        arrays: arrays in the order and shapes of `plan.tensors`.

    Raises:
        ValueError: if the path has another suffix, or the network has no names in PyTorch.
    """
    path = check_target_path(path)
    if path.suffix == ".npz":
        by_path = {"/".join(t.path): a for t, a in zip(plan.tensors, arrays, strict=True)}
        write_arrays(path, by_path)
    else:
        write_arrays(path, to_target_state_dict(plan, arrays))


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays; a reader never sees half a file.

    NumPy's files do not keep the dtypes that JAX adds, and would be read as bytes (`|V2`). In them,
    bfloat16, float8 and the like become float32, small integers int8 or uint8: all their values
    are exact in these. Random keys become the integers that they are made of.

    Args:
        path: an `.npz` or `.safetensors` file; an existing file is replaced.
        arrays: the arrays by name.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        if path.suffix == ".npz":
            converted: dict[str, Any] = {name: to_numpys_dtype(x) for name, x in arrays.items()}
            with temporary.open("wb") as file:
                np.savez(file, **converted)
        else:
            from safetensors.numpy import save_file  # here, since nothing else needs safetensors

            save_file(dict(arrays), temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_numpys_dtype(array: Any) -> np.ndarray:
    """Convert an array to a dtype that NumPy's files keep, without changing a value.

    Args:
        array: an array of any dtype of JAX.

    Returns:
        The array; float32 for bfloat16, float8 and smaller ones, int8 or uint8 for int4 and int2.
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    if array.dtype.isbuiltin != 2:  # 2 is a dtype registered from outside NumPy
        return array
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float32)
    return array.astype(np.uint8 if jnp.issubdtype(array.dtype, jnp.unsignedinteger) else np.int8)


def load_target_params(path: str | os.PathLike[str], plan: Plan) -> list[np.ndarray]:
    """Read what `save_target_params` wrote, or what PyTorch users saved.

    Args:
        path: path of a `.safetensors` or `.npz` file.
        plan: the plan of the same network.

    Returns:
        Arrays in the order, shapes and layouts of `plan.tensors`.

    Raises:
        ValueError: if tensors are missing, unknown or of the wrong shape.
    """
    path = check_target_path(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"{path} cannot be read as a .safetensors file: {shorten(error)}"
            ) from error
        try:
            arrays = from_target_state_dict(plan, tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {shorten(error)}") from error
        return _check_values(path, plan, arrays)
    state = read_arrays(path, "a .npz file of arrays")
    if isinstance(state, np.ndarray):
        raise ValueError(f"{path} holds a single array, expected a .npz file of arrays")
    expected = {"/".join(tensor.path): tensor.shape for tensor in plan.tensors}
    if {name: array.shape for name, array in state.items()} != expected:
        wrong = sorted(
            name
            for name in set(expected) | set(state)
            if name not in state or state[name].shape != expected.get(name)
        )
        raise ValueError(
            f"{path} is of another network: {shorten(', '.join(wrong))} missing, unknown or of"
            " another shape"
        )
    return _check_values(path, plan, [state[name] for name in expected])


def _check_values(path: Path, plan: Plan, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return the arrays; ValueError unless they are finite floating numbers."""
    for tensor, array in zip(plan.tensors, arrays, strict=True):
        name = "/".join(tensor.path)
        if not jnp.issubdtype(array.dtype, np.floating):  # which knows bfloat16, too
            raise ValueError(f"{path}: {name} has the dtype {array.dtype}, expected a floating one")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has values that are not finite, expected numbers")
    return arrays


def check_target_path(path: str | os.PathLike[str]) -> Path:
    """Return the path; ValueError if its suffix names no format or its folder is missing."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{str(path)!r} ends in {path.suffix!r}, expected {' or '.join(SUFFIXES)}")
    if path.parent != Path() and not path.parent.is_dir():
        raise ValueError(f"{str(path)!r} is in {str(path.parent)!r}, expected a folder that exists")
    return path


def _torch_axes(tensor: ParameterTensor) -> tuple[int, ...]:
    """Return, for each axis in PyTorch's layout, the axis in ours."""
    if tensor.role == "position":
        return (0, 3, 1, 2)
    num_axes = len(tensor.shape)
    return tuple(range(num_axes))[::-1][:2] + tuple(range(num_axes - 2)) if num_axes > 1 else (0,)
