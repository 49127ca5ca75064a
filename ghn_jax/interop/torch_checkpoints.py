"""Translate official GHN checkpoints (`.pt` files of facebookresearch/ppuda), both ways.

A file with `state_dict`, `config` and `epoch` <-> a `GHNConfig`, Flax variables and the epoch.
PyTorch's layouts (out, in, kh, kw) <-> Flax's (kh, kw, in, out).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import (
    as_tuple,
    check_choice,
    check_count,
    check_flag,
    check_keys,
    describe_value,
    shorten,
)
from ghn_jax.hypernetworks import GHNConfig, parameter_shapes
from ghn_jax.hypernetworks.decoders import DECODERS
from ghn_jax.hypernetworks.message_passing import MESSAGE_PASSING
from ghn_jax.interop.torch_files import read_torch_file
from ghn_jax.interop.torch_layouts import official_name, tensor_layouts
from ghn_jax.interop.torch_writer import write_torch_file
from ghn_jax.sampling import SpaceConfig
from ghn_jax.training.config import DataConfig, ExperimentConfig

_KEYS = ("state_dict", "config")
# What the original needs to resume training, which we do not read, and an older spelling of it.
_OPTIONAL_KEYS = ("epoch", "optimizer", "optimzer", "step")
_CONFIG_KEYS = ("max_shape", "num_classes")
_OPTIONAL_CONFIG_KEYS = (
    "hypernet",
    "decoder",
    "weight_norm",
    "ve",
    "layernorm",
    "hid",
    "debug_level",
)
_LARGEST_KERNEL = 16  # in networks for large images: their patch embedding
# Official files only have a flag, `ve`; their graphs were cut off at this distance.
_VIRTUAL_EDGES = 50


class TorchCheckpoint(NamedTuple):
    """An official checkpoint in this project's terms.

    Attributes:
        config: The hypernetwork's variant and sizes.
        variables: The variables {"params": ...} of `Hypernetwork(config)`, float32.
        epoch: The last epoch of its training.
    """

    config: GHNConfig
    variables: dict[str, Any]
    epoch: int


def load_torch_checkpoint(path: str | Path) -> TorchCheckpoint:
    """Load a GHN from an official checkpoint.

    Args:
        path: A `.pt` file with `state_dict`, `config` and `epoch`.

    Returns:
        Config, variables and epoch.

    Raises:
        ValueError: If the file is not such a checkpoint, refers to globals other than those of
            tensors, or its tensors are missing, unknown or of another shape than its config
            implies; it names the file and the tensors.
    """
    if not Path(path).is_file():
        raise ValueError(f"path is {str(path)!r}, expected an official checkpoint: no such file")
    contents = read_torch_file(path)
    check_keys(f"checkpoint {path}", contents, _KEYS, _OPTIONAL_KEYS)
    epoch = contents.get("epoch", 0)
    try:
        check_count("epoch", epoch, limits.COUNT)
        config = convert_config(contents["config"])
        variables = convert_state_dict(contents["state_dict"], config)
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from error
    return TorchCheckpoint(config, variables, epoch)


def save_torch_checkpoint(path: str | Path, checkpoint: TorchCheckpoint) -> None:
    """Write a GHN as an official checkpoint, which the original's `GHN.load` reads.

    Args:
        path: Path of the new `.pt` file.
        checkpoint: The contents of the file.

    Raises:
        ValueError: If the file already exists, or the original has no such hypernetwork.
    """
    if Path(path).exists():
        raise ValueError(f"{path} exists, expected a new file: remove it to write it again")
    contents = {
        "state_dict": to_state_dict(checkpoint.variables, checkpoint.config),
        "epoch": checkpoint.epoch,
        "config": to_official_config(checkpoint.config),
    }
    write_torch_file(path, contents)


def convert_config(official: Mapping[str, Any]) -> GHNConfig:
    """Translate the `config` of an official checkpoint.

    Args:
        official: Arguments of the original's constructor; missing ones take its defaults.

    Returns:
        The config.

    Raises:
        ValueError: If a key is unknown or missing, or the original has no such value.
    """
    check_keys("config", official, _CONFIG_KEYS, _OPTIONAL_CONFIG_KEYS)
    hypernet = official.get("hypernet", "gatedgnn")
    names = {
        MESSAGE_PASSING[name].official_name: name
        for name in MESSAGE_PASSING
        if hasattr(MESSAGE_PASSING[name], "official_name")
    }
    check_choice("hypernet", hypernet, tuple(names))
    for flag in ("ve", "layernorm", "weight_norm"):
        check_flag(flag, official.get(flag, False))
    return GHNConfig(
        num_classes=official["num_classes"],
        hidden_size=official.get("hid", 32),
        max_shape=as_tuple("max_shape", official["max_shape"]),
        message_passing=MESSAGE_PASSING.config(names[hypernet]),
        virtual_edges=_VIRTUAL_EDGES if official.get("ve", False) else 1,
        layer_norm=official.get("layernorm", False),
        normalize_parameters=official.get("weight_norm", False),
        decoder=DECODERS.config(official.get("decoder", "conv")),
    )


def official_experiment(config: GHNConfig) -> ExperimentConfig:
    """Infer for which images and architectures an official checkpoint was trained.

    The file does not say so. The original has two settings: 224 px with kernels of up to 16x16
    (ImageNet), and 32 px with kernels of up to 11x11 (CIFAR-10).

    Args:
        config: The config of the checkpoint.

    Returns:
        The config of a run with those hyperparameters that the two published settings share.
    """
    is_large = config.max_shape[2] >= _LARGEST_KERNEL
    names = {10: "cifar10", 100: "cifar100"}
    name = "imagenet2012" if is_large else names.get(config.num_classes, "cifar10")
    space = SpaceConfig(image_size=224 if is_large else 32, num_classes=config.num_classes)
    return ExperimentConfig(data=DataConfig(name=name), space=space, ghn=config)


def to_official_config(config: GHNConfig) -> dict[str, Any]:
    """Return the `config` of an official checkpoint: the inverse of `convert_config`.

    Args:
        config: The config of a hypernetwork.

    Returns:
        Arguments of the original's constructor.

    Raises:
        ValueError: If the original has no such hypernetwork.
    """
    if config.virtual_edges not in (1, _VIRTUAL_EDGES):
        raise ValueError(
            f"virtual_edges is {config.virtual_edges}, expected 1 or {_VIRTUAL_EDGES}: official"
            " checkpoints only say whether there are any"
        )
    return {
        "max_shape": config.max_shape,
        "num_classes": config.num_classes,
        "hypernet": official_name(MESSAGE_PASSING, config.message_passing),
        "decoder": official_name(DECODERS, config.decoder),
        "weight_norm": config.normalize_parameters,
        "ve": config.virtual_edges > 1,
        "layernorm": config.layer_norm,
        "hid": config.hidden_size,
    }


def convert_state_dict(state: Mapping[str, np.ndarray], config: GHNConfig) -> dict[str, Any]:
    """Translate the tensors of an official checkpoint.

    Args:
        state: Tensors by their official names, in PyTorch's layouts.
        config: The config of the same checkpoint.

    Returns:
        {"params": ...} float32, structured like the result of `initialize(config, key)`.

    Raises:
        ValueError: If tensors are missing, unknown or of the wrong shape; it names all of them.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"state_dict is a {type(state).__name__}, expected a mapping")
    # DataParallel, which the authors use on several GPUs, puts `module.` before every name.
    for name in state:
        if not isinstance(name, str):
            raise ValueError(f"state_dict has the name {describe_value(name)}, expected a str")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    layouts = tensor_layouts(config)
    _check_tensors(state, {layout.name: layout.shape for layout in layouts.values()}, config)
    converted = {}
    for path, like in flatten_dict(parameter_shapes(config)["params"], sep="/").items():
        layout = layouts[path]
        array = np.ascontiguousarray(layout.to_flax(state[layout.name]), np.float32)
        assert array.shape == like.shape, (path, array.shape, like.shape)
        converted[path] = array
    return {"params": unflatten_dict(converted, sep="/")}


def to_state_dict(variables: Mapping[str, Any], config: GHNConfig) -> dict[str, np.ndarray]:
    """Return the tensors of an official checkpoint: the inverse of `convert_state_dict`.

    Args:
        variables: The variables {"params": ...} of `Hypernetwork(config)`.
        config: The config of the same hypernetwork.

    Returns:
        Tensors by their official names, in PyTorch's layouts.
    """
    layouts = tensor_layouts(config)
    flat = flatten_dict(variables["params"], sep="/")
    return {
        layout.name: np.ascontiguousarray(layout.to_torch(np.asarray(flat[path], np.float32)))
        for path, layout in layouts.items()
    }


def _fits_float32(tensor: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(tensor.astype(np.float32)).all())


def _check_tensors(
    state: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], config: GHNConfig
) -> None:
    problems = []
    if missing := sorted(set(expected) - set(state)):
        problems.append(f"lacks {shorten(', '.join(missing))}")
    if unknown := sorted(set(state) - set(expected)):
        problems.append(f"has the unknown {shorten(', '.join(unknown))}")
    misshapen = []
    for name, shape in expected.items():
        tensor = state.get(name)
        if isinstance(tensor, np.ndarray) and not np.issubdtype(tensor.dtype, np.floating):
            misshapen.append(f"{name} of dtype {tensor.dtype}, expected a floating one")
        elif isinstance(tensor, np.ndarray) and tensor.shape != shape:
            misshapen.append(f"{name} of shape {tensor.shape}, expected {shape}")
        elif isinstance(tensor, np.ndarray) and not _fits_float32(tensor):
            misshapen.append(f"{name} with values that no finite float32 holds")
        elif name in state and not isinstance(tensor, np.ndarray):
            misshapen.append(f"{name} of type {type(tensor).__name__}, expected a tensor")
    if misshapen:
        problems.append(f"has {shorten('; '.join(misshapen))}")
    if problems:
        raise ValueError(
            f"state_dict {' and '.join(problems)}; these are not the tensors of {config}"
        )
