"""Read official GHN checkpoints (`.pt` files of facebookresearch/ppuda) without PyTorch.

In: a file that `torch.save` wrote, a zip archive with a pickle and one raw storage per tensor. Out:
a `GHNConfig`, Flax variables and the epoch. A pickle can call anything; this reader resolves only
the four names that tensors and ordered dicts need and refuses all others, so nothing in a file
runs.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ghn_jax.architectures.validation import check_choice, check_keys
from ghn_jax.graphs.primitives import PRIMITIVES
from ghn_jax.hypernetworks import GHNConfig, parameter_shapes, shape_vocabulary

_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "BoolStorage": np.dtype("?"),
}
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
    recipes = {}
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


def read_torch_file(path: str | Path) -> Any:
    """Read a file that `torch.save` wrote; tensors become numpy arrays.

    Args:
        path: The file, a zip archive as PyTorch writes since 1.6.

    Returns:
        Its contents: containers, numbers, strings and arrays.

    Raises:
        ValueError: If it is no such archive, holds a global other than those of tensors and ordered
            dicts, or a tensor reaches beyond its storage.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError(f"{path} has {len(pickles)} entries data.pkl, expected 1")
            root = pickles[0].removesuffix("data.pkl")
            if root + "byteorder" in archive.namelist():
                order = archive.read(root + "byteorder").decode("ascii", "replace")
                if order != "little":
                    raise ValueError(f"byteorder of {path} is {order!r}, expected 'little'")
            data = io.BytesIO(archive.read(pickles[0]))
            return _TensorUnpickler(data, archive, root).load()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no zip archive ({error}), expected a PyTorch file") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


class _StorageType(NamedTuple):
    dtype: np.dtype


class _TensorUnpickler(pickle.Unpickler):
    """Knows tensors, ordered dicts and plain containers, and nothing else."""

    def __init__(self, data: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(data)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time: a pickle may set attributes of what it is given.
            return lambda *args: _rebuild_tensor(*args)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, requires_grad, hooks: tensor
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        raise ValueError(
            f"file refers to {module}.{name}, expected only tensors, numbers and containers"
        )

    def persistent_load(self, reference: Any) -> np.ndarray:
        kind, storage_type, key, _, _ = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ValueError(f"file refers to {reference!r}, expected a tensor's storage")
        data = self._archive.read(f"{self._root}data/{key}")
        return np.frombuffer(data, storage_type.dtype)


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None):
    del requires_grad, hooks, metadata
    if min((offset, *shape, *strides), default=0) < 0:
        raise ValueError(f"tensor has offset {offset}, shape {shape}, strides {strides}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        raise ValueError(
            f"tensor of shape {shape} ends at element {last}, expected less than the"
            f" {storage.size} of its storage"
        )
    steps = [step * storage.itemsize for step in strides]
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
    return view.copy()
