"""Names and layouts of a hypernetwork's tensors in official checkpoints.

In: a `GHNConfig`. Out: for each of our parameters the official tensor that holds the same numbers.
Each is the other one with axes split and reordered, so that one description serves both ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ghn_jax.graphs.primitives import PRIMITIVES
from ghn_jax.hypernetworks import GHNConfig, shape_vocabulary


class TensorLayout(NamedTuple):
    """The official tensor that holds a parameter.

    Attributes:
        name: of the official tensor.
        shape: of the official tensor.
        split: the same numbers with axes that ours has apart split, and those of size 1 dropped.
        axes: our axis k is axis `axes[k]` of `split`.
    """

    name: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]

    def to_flax(self, tensor: np.ndarray) -> np.ndarray:
        """Official layout -> ours."""
        return tensor.reshape(self.split).transpose(self.axes)

    def to_torch(self, parameter: np.ndarray) -> np.ndarray:
        """Our layout -> official."""
        return parameter.transpose(np.argsort(self.axes)).reshape(self.shape)


def tensor_layouts(config: GHNConfig) -> dict[str, TensorLayout]:
    """Describe the official tensor of every parameter.

    Args:
        config: of the hypernetwork.

    Returns:
        Path of our parameter, joined with "/" -> layout.
    """
    size, channels = config.hidden_size, max(config.max_shape[:2])
    vocabulary = shape_vocabulary(config.num_classes, config.max_shape[2])
    num_channels, num_spatial = len(vocabulary.channels) + 1, len(vocabulary.spatial) + 1
    layouts = {
        "embedding/primitive": _same("embed.weight", len(PRIMITIVES), size),
        "embedding/channel": _same("shape_enc.embed_channel.weight", num_channels, size // 4),
        "embedding/spatial": _same("shape_enc.embed_spatial.weight", num_spatial, size // 4),
    }
    if config.message_passing == "mlp":
        layouts |= _linear("mlp/layer_1/", "gnn.fc.0", size, size)
        layouts |= _linear("mlp/layer_2/", "gnn.fc.2", size, size)
    else:
        layouts |= _gated_gnn(config)
    if config.layer_norm:
        layouts["norm/scale"] = _same("ln.weight", size)
        layouts["norm/bias"] = _same("ln.bias", size)
    layouts |= _conv_decoder(config) if config.decoder == "conv" else _mlp_decoder(config)
    layouts |= _linear("vectors/mlp/layer_1/", "decoder_1d.fc.0", size, 2 * size)
    layouts |= _linear("vectors/mlp/layer_2/", "decoder_1d.fc.2", 2 * size, 2 * channels)
    layouts |= _linear("vectors/classifier/", "bias_class.1", channels, config.num_classes)
    return layouts


def _gated_gnn(config: GHNConfig) -> dict[str, TensorLayout]:
    size, has_virtual = config.hidden_size, config.virtual_edges > 1
    hidden_size = size // 2 if has_virtual else size
    layouts: dict[str, TensorLayout] = {}
    for mlp, official in (("mlp", "mlp"), ("mlp_virtual", "mlp_ve"))[: 1 + has_virtual]:
        for layer, index, sizes in ((1, 0, (size, hidden_size)), (2, 2, (hidden_size, size))):
            linear = _linear("", f"gnn.{official}.fc.{index}", *sizes)
            layouts |= {f"gnn/{mlp}_{part}_{layer}": layout for part, layout in linear.items()}
    for side, suffix in (("message", "ih"), ("state", "hh")):
        kernel = f"gnn.gru.weight_{suffix}"
        layouts[f"gnn/gru_{side}_kernel"] = _reordered(kernel, (3 * size, size), (1, 0))
        layouts[f"gnn/gru_{side}_bias"] = _same(f"gnn.gru.bias_{suffix}", 3 * size)
    return layouts


def _conv_decoder(config: GHNConfig) -> dict[str, TensorLayout]:
    size, (num_out, num_in, spatial, _) = config.hidden_size, config.max_shape
    first, second, num_classes = 4 * size, 8 * size, config.num_classes
    pixels, tile = first * spatial**2, num_out * num_in
    classifier = "decoder.class_layer_predictor.1"
    return {
        # Channels are the slowest axis of the first layer's outputs: (4D, S, S).
        "kernels/kernel_1": TensorLayout(
            "decoder.fc.0.weight", (pixels, size), (first, spatial, spatial, size), (3, 1, 2, 0)
        ),
        "kernels/bias_1": TensorLayout(
            "decoder.fc.0.bias", (pixels,), (first, spatial, spatial), (1, 2, 0)
        ),
        "kernels/kernel_2": TensorLayout(
            "decoder.conv.0.weight", (second, first, 1, 1), (second, first), (1, 0)
        ),
        "kernels/bias_2": _same("decoder.conv.0.bias", second),
        "kernels/kernel_3": TensorLayout(
            "decoder.conv.2.weight", (tile, second, 1, 1), (num_out, num_in, second), (2, 1, 0)
        ),
        "kernels/bias_3": TensorLayout("decoder.conv.2.bias", (tile,), (num_out, num_in), (1, 0)),
        "kernels/classifier/kernel": TensorLayout(
            f"{classifier}.weight", (num_classes, num_out, 1, 1), (num_classes, num_out), (1, 0)
        ),
        "kernels/classifier/bias": _same(f"{classifier}.bias", num_classes),
    }


def _mlp_decoder(config: GHNConfig) -> dict[str, TensorLayout]:
    hidden_size, tile = 2 * config.hidden_size, config.max_shape
    num_outputs = math.prod(tile)
    return {
        **_linear("kernels/hidden/", "decoder.mlp.fc.0", config.hidden_size, hidden_size),
        "kernels/kernel_2": TensorLayout(
            "decoder.mlp.fc.2.weight",
            (num_outputs, hidden_size),
            (*tile, hidden_size),
            (4, 2, 3, 1, 0),
        ),
        "kernels/bias_2": TensorLayout("decoder.mlp.fc.2.bias", (num_outputs,), tile, (2, 3, 1, 0)),
        **_linear(
            "kernels/classifier/",
            "decoder.class_layer_predictor.1",
            hidden_size,
            config.num_classes * tile[0],
        ),
    }


def _linear(prefix: str, official: str, fan_in: int, features: int) -> dict[str, TensorLayout]:
    return {
        f"{prefix}kernel": _reordered(f"{official}.weight", (features, fan_in), (1, 0)),
        f"{prefix}bias": _same(f"{official}.bias", features),
    }


def _same(name: str, *shape: int) -> TensorLayout:
    return _reordered(name, shape, range(len(shape)))


def _reordered(name: str, shape: tuple[int, ...], axes: Sequence[int]) -> TensorLayout:
    return TensorLayout(name, shape, shape, tuple(axes))
