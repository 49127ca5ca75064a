"""From tiles to target parameters: crop, repeat along channels, crop, scale (docs/method.md).

A decoder emits tiles of bounded size; a target's tensor is cut from its node's tile. The same code
runs on numpy arrays, where a CPU assembles ~150 tensors per architecture with nothing to dispatch,
and on JAX arrays. `untile_gradients` is the transpose.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ghn_jax.graphs.schema import ROLES, ParameterTensor

Array = Any  # numpy or JAX


_SMALLEST_BOUNDED = 32  # channels
KINDS = ("kernel", "depthwise", "position", "vector", "classifier_kernel", "classifier_bias")


class TileKey(NamedTuple):
    """A kind of tile: all tensors with the same key are decoded together.

    Attributes:
        kind: "kernel" (h, w, I, O), "depthwise" (h, w, 1, O), "position" (h, w, I), "vector"
            (2, max(O, I)) with rows scale and bias, "classifier_kernel" (I, K), "classifier_bias"
            (K,).
        height: Kernel height; 1 for vectors.
        width: Kernel width.
        in_channels: A "kernel" tile has only the first so many of the I input channels; 0 = all.
        out_channels: The same for its O output channels.
    """

    kind: str
    height: int = 1
    width: int = 1
    in_channels: int = 0
    out_channels: int = 0


def request_key(
    tensor: ParameterTensor, max_shape: tuple[int, int, int, int] | None = None
) -> TileKey:
    """The kind of tile a tensor is cut from.

    Args:
        tensor: Of a target network.
        max_shape: (O, I, S, S) of the hypernetwork, to decode of narrow kernels the part in use
            only. Channels are bounded by a sixteenth (an image's three channels) or a half of the
            tile, so that keys stay few: programs are compiled for each. Tiles of fewer than 32
            channels are decoded whole: compiling more would cost more. None decodes whole tiles.

    Returns:
        The key.

    Raises:
        ValueError: If the role is unknown.
    """
    if tensor.role not in ROLES:
        raise ValueError(f"role is {tensor.role!r}, expected one of {', '.join(ROLES)}")
    if tensor.role in ("scale", "bias"):
        return TileKey("vector")
    if tensor.role == "position":
        return TileKey("position", *tensor.shape[1:3])
    key = TileKey(tensor.role, *tensor.shape[:-2])  # a dense kernel is a 1x1 kernel
    if tensor.role != "kernel" or max_shape is None:
        return key
    num_in, num_out = tensor.shape[-2:]
    return key._replace(
        in_channels=_channel_bound(num_in, max_shape[1]),
        out_channels=_channel_bound(num_out, max_shape[0]),
    )


def decoded_sizes(key: TileKey, max_shape: tuple[int, int, int, int]) -> tuple[int, int]:
    """How large a tile is where it is decoded, before it is repeated.

    Args:
        key: Of its kind.
        max_shape: (O, I, S, S) of the hypernetwork.

    Returns:
        The number of its pixels, and of the elements of each.
    """
    num_out, num_in, size, _ = max_shape
    num_pixels = min(key.height, size) * min(key.width, size)
    if key.kind == "kernel":
        return num_pixels, (key.out_channels or num_out) * (key.in_channels or num_in)
    return num_pixels, {"depthwise": num_out, "position": num_in}.get(key.kind, num_out * num_in)


def tile_parameters(
    tiles: Array, rows: Array, shape: tuple[int, ...], role: str, factor: float = 1.0, xp: Any = jnp
) -> Array:
    """Cut parameter tensors of one shape from tiles.

    Args:
        tiles: (G, ...), as `TileKey` lists them.
        rows: (n,) int, the tile of each tensor.
        shape: Of the tensors, Flax layout.
        role: Of the tensors.
        factor: Multiplies the result.
        xp: `jax.numpy`, or `numpy` for numpy tiles.

    Returns:
        (n, *shape).
    """
    shape = tuple(shape)
    used = _used_shape(tuple(tiles.shape[1:]), shape, role)
    block = tiles[(rows, *tile_slices(tuple(tiles.shape[1:]), shape, role))]
    block = block.reshape(len(rows), *used)
    if factor != 1.0:
        block = block * block.dtype.type(factor)
    for axis, size in enumerate(shape if used != shape else (), start=1):
        have = block.shape[axis]
        if have < size:
            repeats = [1] * block.ndim
            repeats[axis] = -(-size // have)
            block = _slice_axis(xp.tile(block, repeats), axis, 0, size)
    return block


def untile_gradients(
    gradients: Array, tile_shape: tuple[int, ...], role: str, factor: float = 1.0, xp: Any = jnp
) -> Array:
    """The transpose of `tile_parameters`: sum over the repeats of every tile element.

    Args:
        gradients: (n, ...), of the tensors.
        tile_shape: Of a tile.
        role: Of the tensors.
        factor: As given to `tile_parameters`.
        xp: `jax.numpy` or `numpy`.

    Returns:
        (n, ...), gradients of the part of each tile that was used, as `tile_slices` locates it.
    """
    shape = tuple(gradients.shape[1:])
    used = _used_shape(tuple(tile_shape), shape, role)
    for axis, have in enumerate(used if used != shape else (), start=1):
        size = gradients.shape[axis]
        if have < size:
            num_whole = size // have
            before, after = gradients.shape[:axis], gradients.shape[axis + 1 :]
            whole = _slice_axis(gradients, axis, 0, num_whole * have)
            total = whole.reshape(*before, num_whole, have, *after).sum(axis=axis)
            rest = _slice_axis(gradients, axis, num_whole * have, size)
            if rest.size:
                first = _slice_axis(total, axis, 0, rest.shape[axis]) + rest
                others = _slice_axis(total, axis, rest.shape[axis], have)
                total = xp.concatenate([first, others], axis=axis)
            gradients = total
    return gradients * gradients.dtype.type(factor) if factor != 1.0 else gradients


def tile_parameter(
    tile: Array, shape: tuple[int, ...], role: str, factor: float = 1.0, xp: Any = jnp
) -> Array:
    """Cut one parameter tensor from a tile without the axis of nodes: see `tile_parameters`."""
    return tile_parameters(tile[None], np.zeros(1, np.int32), shape, role, factor, xp)[0]


@functools.lru_cache(maxsize=2**14)
def tile_slices(tile_shape: tuple[int, ...], shape: tuple[int, ...], role: str) -> tuple:
    """Where in a tile the part lies that a tensor of `shape` uses: an index for the tile."""
    used = _used_shape(tile_shape, shape, role)
    if role == "scale":
        return (0, slice(used[0]))
    if role == "bias":
        return (1, slice(used[0]))
    if role == "position":
        return tuple(map(slice, used[1:]))
    if len(tile_shape) == 4 and len(shape) == 2:
        return (0, 0, *map(slice, used))
    return tuple(map(slice, used))


def _channel_bound(needed: int, size: int) -> int:
    if size < _SMALLEST_BOUNDED:
        return 0
    return next((bound for bound in (size // 16, size // 2) if needed <= bound), 0)


@functools.lru_cache(maxsize=2**14)
def _used_shape(tile_shape, shape, role):
    """The shape of the part of a tile that a tensor uses, with the tensor's axes."""
    return tuple(map(min, _selected_shape(tile_shape, role, shape), shape))


def _selected_shape(tile_shape, role, shape):
    if role in ("scale", "bias"):
        return tile_shape[1:]
    if role == "position":
        return (1, *tile_shape)
    return tile_shape[-len(shape) :]


def _slice_axis(array, axis, start, stop):
    return array[(slice(None),) * axis + (slice(start, stop),)]
