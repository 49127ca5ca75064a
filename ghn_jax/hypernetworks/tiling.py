"""From tiles to target parameters: crop, repeat along channels, crop, scale (docs/method.md).

A decoder emits tiles of bounded size; a target's tensor is cut from its node's tile. The same code
runs on JAX arrays and on numpy arrays, with which a CPU assembles ~150 tensors per architecture
without dispatching anything. `untile_gradients` is the transpose.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ghn_jax.arrays import Array
from ghn_jax.graphs.schema import ROLES

TileIndex = tuple[int | slice, ...]

_SMALLEST_BOUNDED = 32  # channels
KERNEL_KINDS = ("kernel", "depthwise", "position", "classifier_kernel")
VECTOR_KINDS = ("vector", "classifier_bias")


class TileKey(NamedTuple):
    """A kind of tile. All tensors with the same key are decoded together.

    Attributes:
        kind: "kernel" (h, w, I, O), "depthwise" (h, w, 1, O), "position" (h, w, I), "vector"
            (2, max(O, I)) with rows scale and bias, "classifier_kernel" (I, K), "classifier_bias"
            (K,).
        height: Kernel height; 1 for vectors.
        width: Kernel width; 1 for vectors.
        in_channels: How many of the I input channels a "kernel" tile has, the first ones; 0 = all.
        out_channels: The same for the O output channels.
    """

    kind: str
    height: int = 1
    width: int = 1
    in_channels: int = 0
    out_channels: int = 0


def request_key(
    shape: tuple[int, ...], role: str, max_shape: tuple[int, int, int, int] | None = None
) -> TileKey:
    """Choose the kind of tile a tensor is cut from.

    Args:
        shape: The tensor's shape, in Flax layout.
        role: The tensor's role.
        max_shape: The hypernetwork's (O, I, S, S), given to decode only the used part of narrow
            kernels. Channels are bounded by a sixteenth (an image's three channels) or a half of
            the tile, to keep the number of keys small: programs are compiled for each. Tiles of
            fewer than 32 channels are decoded whole, since more programs would cost more. None
            decodes whole tiles.

    Returns:
        The key.

    Raises:
        ValueError: If the role is unknown.
    """
    if role not in ROLES:
        raise ValueError(f"role is {role!r}, expected one of {', '.join(ROLES)}")
    if role in ("scale", "bias"):
        return TileKey("vector")
    if role == "position":
        return TileKey("position", *shape[1:3])
    kind = "kernel" if role == "embedding" else role
    key = TileKey(kind, *shape[:-2])  # a dense kernel is a 1x1 kernel
    if kind != "kernel" or max_shape is None:
        return key
    num_in, num_out = shape[-2:]
    return key._replace(
        in_channels=_channel_bound(num_in, max_shape[1]),
        out_channels=_channel_bound(num_out, max_shape[0]),
    )


def tile_parameters(
    tiles: Array,
    rows: Array,
    shape: tuple[int, ...],
    index: TileIndex,
    factor: float = 1.0,
    xp: Any = jnp,
) -> Array:
    """Cut parameter tensors of one shape from tiles.

    Args:
        tiles: (G, ...) tiles of one kind.
        rows: (n,) int, the index of each tensor's tile.
        shape: Each tensor's shape, in Flax layout.
        index: Index of the part of a tile that the tensors use.
        factor: Factor that multiplies the result.
        xp: `jax.numpy`, or `numpy` for numpy tiles.

    Returns:
        The tensors, (n, *shape).
    """
    shape = tuple(shape)
    used = _used_shape(index, len(shape))
    block = tiles[(rows, *index)].reshape(len(rows), *used)
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
    gradients: Array, index: TileIndex, factor: float = 1.0, xp: Any = jnp
) -> Array:
    """Apply the transpose of `tile_parameters`: sum over the repeats of every tile element.

    Args:
        gradients: (n, ...), the tensors' gradients.
        index: Index of the part of a tile that the tensors use.
        factor: The factor given to `tile_parameters`.
        xp: `jax.numpy` or `numpy`.

    Returns:
        (n, ...), gradients of the used part of each tile, with the tensors' axes.
    """
    shape = tuple(gradients.shape[1:])
    used = _used_shape(index, len(shape))
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
    tile: Array, shape: tuple[int, ...], index: TileIndex, factor: float = 1.0, xp: Any = jnp
) -> Array:
    """Cut one parameter tensor from one tile, which has no axis of nodes; see `tile_parameters`."""
    return tile_parameters(tile[None], np.zeros(1, np.int32), shape, index, factor, xp)[0]


@functools.lru_cache(maxsize=2**14)
def tile_slices(tile_shape: tuple[int, ...], shape: tuple[int, ...], role: str) -> TileIndex:
    """Find the part of a tile, laid out as `TileKey` says, that a tensor uses.

    Args:
        tile_shape: The tile's shape.
        shape: The tensor's shape, in Flax layout.
        role: The tensor's role.

    Returns:
        The index of that part, which has the tile's first channels.
    """
    if role in ("scale", "bias"):
        return (0 if role == "scale" else 1, slice(min(tile_shape[1], shape[0])))
    if role == "position":
        shape = shape[1:]
    row: TileIndex = (0,) * (len(tile_shape) - len(shape))  # a dense kernel is a 1x1 kernel
    return (*row, *map(slice, map(min, tile_shape[len(row) :], shape)))


def _channel_bound(needed: int, size: int) -> int:
    if size < _SMALLEST_BOUNDED:
        return 0
    return next((bound for bound in (size // 16, size // 2) if needed <= bound), 0)


def _used_shape(index: TileIndex, num_axes: int) -> tuple[int, ...]:
    """Return the shape of the part of a tile that a tensor uses, with the tensor's axes."""
    used = tuple(part.stop - (part.start or 0) for part in index if isinstance(part, slice))
    return (1,) * (num_axes - len(used)) + used


def _slice_axis(array: Array, axis: int, start: int, stop: int) -> Array:
    return array[(slice(None),) * axis + (slice(start, stop),)]
