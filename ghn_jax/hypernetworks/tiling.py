"""From tiles to target parameters: crop, repeat along channels, crop, scale (spec section 3).

A decoder emits tiles of bounded size; a target's tensor is cut from its node's tile. The same code
runs on numpy arrays, where a CPU assembles ~150 tensors per architecture with nothing to dispatch,
and on JAX arrays. `untile_gradient` is the transpose.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from ghn_jax.targets.tracing import ROLES, ParameterTensor

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


def tile_parameter(
    tile: Array, shape: tuple[int, ...], role: str, factor: float = 1.0, xp: Any = jnp
) -> Array:
    """Cut a parameter tensor from a tile.

    Args:
        tile: As `TileKey` lists, without the axis of nodes.
        shape: The tensor's, Flax layout.
        role: The tensor's.
        factor: Multiplies the result.
        xp: `jax.numpy`, or `numpy` for numpy tiles.

    Returns:
        An array of exactly `shape`; of a numpy tile possibly a view.
    """
    used = _used_shape(tuple(tile.shape), tuple(shape), role)
    block = tile[tile_slices(tuple(tile.shape), tuple(shape), role)].reshape(used)
    if factor != 1.0:
        block = block * block.dtype.type(factor)
    if used == tuple(shape):
        return block
    for axis, size in enumerate(shape):
        have = block.shape[axis]
        if have < size:
            repeats = [1] * block.ndim
            repeats[axis] = -(-size // have)
            block = _slice_axis(xp.tile(block, repeats), axis, 0, size)
    return block


def untile_gradient(
    gradient: Array, tile_shape: tuple[int, ...], role: str, factor: float = 1.0, xp: Any = jnp
) -> Array:
    """The transpose of `tile_parameter`: sum over the repeats of every tile element.

    Args:
        gradient: Of the tensor.
        tile_shape: Of the tile.
        role: The tensor's.
        factor: As given to `tile_parameter`.
        xp: `jax.numpy` or `numpy`.

    Returns:
        The gradient of the part of the tile that was used, as `tile_slices` locates it.
    """
    used = _used_shape(tuple(tile_shape), tuple(gradient.shape), role)
    for axis, have in enumerate(used if used != gradient.shape else ()):
        size = gradient.shape[axis]
        if have < size:
            num_whole = size // have
            before, after = gradient.shape[:axis], gradient.shape[axis + 1 :]
            whole = _slice_axis(gradient, axis, 0, num_whole * have)
            total = whole.reshape(*before, num_whole, have, *after).sum(axis=axis)
            rest = _slice_axis(gradient, axis, num_whole * have, size)
            if rest.size:
                first = _slice_axis(total, axis, 0, rest.shape[axis]) + rest
                others = _slice_axis(total, axis, rest.shape[axis], have)
                total = xp.concatenate([first, others], axis=axis)
            gradient = total
    return gradient * gradient.dtype.type(factor) if factor != 1.0 else gradient


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
