"""Translate official GHN checkpoints (`.pt` files of facebookresearch/ppuda).

In: a file with `state_dict`, `config` and `epoch`. Out: a `GHNConfig`, Flax variables and the
epoch. PyTorch's layouts (out, in, kh, kw) become Flax's (kh, kw, in, out).
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ghn_jax.architectures.validation import check_choice, check_keys
from ghn_jax.graphs.primitives import PRIMITIVES
from ghn_jax.hypernetworks import GHNConfig, parameter_shapes, shape_vocabulary
from ghn_jax.interop.torch_files import read_torch_file

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
_VIRTUAL_EDGES = 50  # `ve` is a flag in official files; the graphs were cut off at this distance


class TorchCheckpoint(NamedTuple):
    """An official checkpoint in this project's terms.

    Attributes:
        config: Variant and sizes.
        variables: {"params": ...} float32 of `Hypernetwork(config)`.
        epoch: The last epoch it was trained for.
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
        ValueError: If the file is not such a checkpoint, names a global other than those of
            tensors, or lacks tensors, has unknown ones or ones of another shape than its config
            implies.
    """
    contents = read_torch_file(path)
    check_keys(f"checkpoint {path}", contents, ("state_dict", "config"), ("epoch",))
    config = convert_config(contents["config"])
    state = contents["state_dict"]
    if not isinstance(state, Mapping):
        raise ValueError(f"state_dict of {path} is a {type(state).__name__}, expected a mapping")
    variables = convert_state_dict(state, config)
    return TorchCheckpoint(config, variables, int(contents.get("epoch", 0)))


def convert_config(official: Mapping[str, Any]) -> GHNConfig:
    """Translate the `config` of an official checkpoint.

    Args:
        official: The constructor's arguments; what is missing has the original's default.

    Returns:
        The config.

    Raises:
        ValueError: If a key is unknown or missing or a value is none the original had.
    """
    check_keys("config", official, _CONFIG_KEYS, _OPTIONAL_CONFIG_KEYS)
    hypernet = official.get("hypernet", "gatedgnn")
    check_choice("hypernet", hypernet, ("gatedgnn", "mlp"))
    return GHNConfig(
        num_classes=official["num_classes"],
        hidden_size=official.get("hid", 32),
        max_shape=tuple(official["max_shape"]),
        message_passing="gated_gnn" if hypernet == "gatedgnn" else "mlp",
        virtual_edges=_VIRTUAL_EDGES if official.get("ve", False) else 1,
        layer_norm=bool(official.get("layernorm", False)),
        normalize_parameters=bool(official.get("weight_norm", False)),
        decoder=official.get("decoder", "conv"),
    )


def convert_state_dict(state: Mapping[str, np.ndarray], config: GHNConfig) -> dict[str, Any]:
    """Translate the tensors of an official checkpoint.

    Args:
        state: Tensors by their official names, PyTorch's layouts.
        config: Of the same checkpoint.

    Returns:
        {"params": ...} float32, as `initialize(config, key)` makes them.

    Raises:
        ValueError: If tensors are missing or unknown, or one has the wrong shape.
    """
    # DataParallel, with which the authors train on several GPUs, puts `module.` before every name.
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    recipes = _recipes(config)
    expected = {recipe.name for recipe in recipes.values()}
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unknown:
        raise ValueError(
            f"state_dict lacks {missing or 'nothing'} and has the unknown {unknown or 'nothing'},"
            f" expected the tensors of {config}"
        )
    params = parameter_shapes(config)["params"]
    converted = {}
    for path, like in flatten_dict(params, sep="/").items():
        name, shape, convert = recipes[path]
        if state[name].shape != shape:
            raise ValueError(f"{name} has shape {state[name].shape}, expected {shape}")
        array = np.ascontiguousarray(convert(state[name]), np.float32)
        assert array.shape == like.shape, (path, array.shape, like.shape)
        converted[path] = array
    return {"params": unflatten_dict(converted, sep="/")}


class _Recipe(NamedTuple):
    """The official tensor a parameter is made of."""

    name: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray]


def _recipes(config: GHNConfig) -> dict[str, _Recipe]:
    # By path of our parameter.
    size, channels = config.hidden_size, max(config.max_shape[:2])
    vocabulary = shape_vocabulary(config.num_classes, config.max_shape[2])
    num_channels, num_spatial = len(vocabulary.channels) + 1, len(vocabulary.spatial) + 1
    embeddings = {
        "primitive": ("embed", (len(PRIMITIVES), size)),
        "channel": ("shape_enc.embed_channel", (num_channels, size // 4)),
        "spatial": ("shape_enc.embed_spatial", (num_spatial, size // 4)),
    }
    recipes = {
        f"embedding/{name}": _Recipe(f"{official}.weight", shape, _as_is)
        for name, (official, shape) in embeddings.items()
    }
    if config.message_passing == "mlp":
        recipes |= _linear("mlp/layer_1/", "gnn.fc.0", size, size)
        recipes |= _linear("mlp/layer_2/", "gnn.fc.2", size, size)
    else:
        recipes |= _gated_gnn(config)
    if config.layer_norm:
        recipes["norm/scale"] = _Recipe("ln.weight", (size,), _as_is)
        recipes["norm/bias"] = _Recipe("ln.bias", (size,), _as_is)
    recipes |= _conv_decoder(config) if config.decoder == "conv" else _mlp_decoder(config)
    recipes |= _linear("vectors/mlp/layer_1/", "decoder_1d.fc.0", size, 2 * size)
    recipes |= _linear("vectors/mlp/layer_2/", "decoder_1d.fc.2", 2 * size, 2 * channels)
    recipes |= _linear("vectors/classifier/", "bias_class.1", channels, config.num_classes)
    return recipes


def _gated_gnn(config: GHNConfig) -> dict[str, _Recipe]:
    size, has_virtual = config.hidden_size, config.virtual_edges > 1
    hidden_size = size // 2 if has_virtual else size
    recipes: dict[str, _Recipe] = {}
    for mlp, official in (("mlp", "mlp"), ("mlp_virtual", "mlp_ve"))[: 1 + has_virtual]:
        for layer, index, sizes in ((1, 0, (size, hidden_size)), (2, 2, (hidden_size, size))):
            linear = _linear("", f"gnn.{official}.fc.{index}", *sizes)
            recipes |= {f"gnn/{mlp}_{part}_{layer}": recipe for part, recipe in linear.items()}
    for side, suffix in (("message", "ih"), ("state", "hh")):
        recipes |= {
            f"gnn/gru_{side}_kernel": _Recipe(
                f"gnn.gru.weight_{suffix}", (3 * size, size), np.transpose
            ),
            f"gnn/gru_{side}_bias": _Recipe(f"gnn.gru.bias_{suffix}", (3 * size,), _as_is),
        }
    return recipes


def _conv_decoder(config: GHNConfig) -> dict[str, _Recipe]:
    size, (num_out, num_in, spatial, _) = config.hidden_size, config.max_shape
    first, pixels, tile = 4 * size, 4 * size * spatial**2, num_out * num_in

    def per_pixel(x):  # channels are the slowest axis of the official outputs
        return np.moveaxis(x.reshape(first, spatial, spatial, *x.shape[1:]), 0, 2)

    def kernel_1(x):
        return np.moveaxis(per_pixel(x), -1, 0)

    def kernel_3(x):
        return x.reshape(num_out, num_in, 2 * first).transpose(2, 1, 0)

    return {
        "kernels/kernel_1": _Recipe("decoder.fc.0.weight", (pixels, size), kernel_1),
        "kernels/bias_1": _Recipe("decoder.fc.0.bias", (pixels,), per_pixel),
        "kernels/kernel_2": _Recipe(
            "decoder.conv.0.weight", (2 * first, first, 1, 1), lambda x: x[:, :, 0, 0].T
        ),
        "kernels/bias_2": _Recipe("decoder.conv.0.bias", (2 * first,), _as_is),
        "kernels/kernel_3": _Recipe("decoder.conv.2.weight", (tile, 2 * first, 1, 1), kernel_3),
        "kernels/bias_3": _Recipe(
            "decoder.conv.2.bias", (tile,), lambda x: x.reshape(num_out, num_in).T
        ),
        "kernels/classifier/kernel": _Recipe(
            "decoder.class_layer_predictor.1.weight",
            (config.num_classes, num_out, 1, 1),
            lambda x: x[:, :, 0, 0].T,
        ),
        "kernels/classifier/bias": _Recipe(
            "decoder.class_layer_predictor.1.bias", (config.num_classes,), _as_is
        ),
    }


def _mlp_decoder(config: GHNConfig) -> dict[str, _Recipe]:
    hidden_size, tile_shape = 2 * config.hidden_size, config.max_shape

    def kernel_2(x):
        return x.reshape(*tile_shape, hidden_size).transpose(4, 2, 3, 1, 0)

    def bias_2(x):
        return x.reshape(tile_shape).transpose(2, 3, 1, 0)

    num_outputs = math.prod(tile_shape)
    return {
        **_linear("kernels/hidden/", "decoder.mlp.fc.0", config.hidden_size, hidden_size),
        "kernels/kernel_2": _Recipe(
            "decoder.mlp.fc.2.weight", (num_outputs, hidden_size), kernel_2
        ),
        "kernels/bias_2": _Recipe("decoder.mlp.fc.2.bias", (num_outputs,), bias_2),
        **_linear(
            "kernels/classifier/",
            "decoder.class_layer_predictor.1",
            hidden_size,
            config.num_classes * tile_shape[0],
        ),
    }


def _linear(prefix: str, official: str, fan_in: int, features: int) -> dict[str, _Recipe]:
    return {
        f"{prefix}kernel": _Recipe(f"{official}.weight", (features, fan_in), np.transpose),
        f"{prefix}bias": _Recipe(f"{official}.bias", (features,), _as_is),
    }


def _as_is(x: np.ndarray) -> np.ndarray:
    return x
