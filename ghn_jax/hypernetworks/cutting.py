"""Cut target parameters from tiles, and add their gradients up in the gradients of the tiles.

The forward pass takes the (G, ...) tiles of one kind and groups of tensors that are cut from them
in the same way, and gives the tensors. The backward pass takes the gradients of the tensors and
gives those of the tiles. On CPUs numpy does this: the ~150 tensors of an architecture are views,
and nothing has to be dispatched. On accelerators programs do it, so that neither parameters nor
gradients leave the device.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.arrays import Array
from ghn_jax.hypernetworks.preparation import TensorGroup
from ghn_jax.hypernetworks.tiling import TileIndex, tile_parameters, untile_gradients
from ghn_jax.programs.table import Compilation, ProgramTable

Grads = Sequence[Sequence[Array] | None]
"""For each graph the gradients of its tensors, or None to leave the graph out."""
CUTTINGS = ("host", "device")
_SMALL_TENSOR = 4096  # elements


class Cutting(Protocol):
    """Cuts tensors from tiles, and computes the transpose of that.

    Attributes:
        has_programs: Whether programs do the work, which can be compiled ahead.
    """

    has_programs: bool

    def cut(
        self, tiles: jax.Array, groups: Iterable[TensorGroup]
    ) -> Iterator[tuple[tuple[int, int], Array]]:
        """Cut all tensors of the groups from tiles.

        Args:
            tiles: (G, ...) tiles of one kind.
            groups: The groups of tensors to cut.

        Yields:
            For each tensor (graph, position in the graph), and the tensor.
        """
        ...

    def tile_gradients(
        self, tiles: jax.Array, groups: Iterable[TensorGroup], grads: Grads
    ) -> Array:
        """Compute the gradients of tiles, summed over the tensors that were cut from them.

        Args:
            tiles: (G, ...) tiles, of which only the shape and dtype are used.
            groups: All groups of tensors that were cut from the tiles.
            grads: The gradients of the tensors.

        Returns:
            The (G, ...) gradients.
        """
        ...

    def forward_compilations(
        self, tiles: jax.ShapeDtypeStruct, groups: Iterable[TensorGroup]
    ) -> Iterator[Compilation]:
        """Yield the programs that `cut` needs."""
        ...

    def backward_compilations(
        self, tiles: jax.ShapeDtypeStruct, groups: Iterable[TensorGroup]
    ) -> Iterator[Compilation]:
        """Yield the programs that `tile_gradients` needs."""
        ...


def create_cutting(table: ProgramTable, place: str | None = None) -> Cutting:
    """Create a `Cutting` that works on the host or on the device.

    Args:
        table: The table in which to declare programs.
        place: "host" or "device"; None means the host on CPUs and the device on accelerators.

    Returns:
        The `Cutting`.

    Raises:
        ValueError: If `place` is not one of `CUTTINGS`.
    """
    if place is None:
        place = "host" if jax.default_backend() == "cpu" else "device"
    if place not in CUTTINGS:
        raise ValueError(f"cutting is {place!r}, expected one of {', '.join(CUTTINGS)}")
    return HostCutting() if place == "host" else DeviceCutting(table)


class HostCutting:
    """Cuts with numpy, where most tensors are views of the tiles and nothing is compiled."""

    has_programs = False

    def cut(
        self, tiles: jax.Array, groups: Iterable[TensorGroup]
    ) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """See `Cutting`."""
        on_host = np.asarray(tiles)
        for group in groups:
            index = group.tile_index(on_host.shape[1:])
            tensors = tile_parameters(on_host, group.rows, group.shape, index, group.factor, np)
            yield from zip(group.places, tensors, strict=True)

    def tile_gradients(
        self, tiles: jax.Array, groups: Iterable[TensorGroup], grads: Grads
    ) -> np.ndarray:
        """See `Cutting`."""
        d_tiles = np.zeros(tiles.shape, tiles.dtype)
        for group in groups:
            _add_on_host(d_tiles, group, grads)
        return d_tiles

    def forward_compilations(
        self, tiles: jax.ShapeDtypeStruct, groups: Iterable[TensorGroup]
    ) -> Iterator[Compilation]:
        """See `Cutting`."""
        return iter(())

    def backward_compilations(
        self, tiles: jax.ShapeDtypeStruct, groups: Iterable[TensorGroup]
    ) -> Iterator[Compilation]:
        """See `Cutting`."""
        return iter(())


def _add_on_host(d_tiles: np.ndarray, group: TensorGroup, grads: Grads) -> None:
    gradients, rows = _keep(group, grads)
    part = group.tile_index(d_tiles.shape[1:])

    def of_parts(gradients: np.ndarray) -> np.ndarray:
        return untile_gradients(gradients, part, group.factor, np)

    if rows and len(set(rows)) == len(rows) and math.prod(group.shape) <= _SMALL_TENSOR:
        of_tiles = d_tiles[(rows, *part)]
        of_tiles += of_parts(np.stack(gradients)).reshape(of_tiles.shape)
        d_tiles[(rows, *part)] = of_tiles
        return
    for gradient, row in zip(gradients, rows, strict=True):
        of_tile = d_tiles[(row, *part)]
        of_tile += of_parts(np.asarray(gradient)[None]).reshape(of_tile.shape)


def _keep(group: TensorGroup, grads: Grads) -> tuple[list[Array], list[int]]:
    """Return the gradients and rows of a group's tensors, without those of left-out graphs."""
    gradients, rows = [], []
    for (graph, position), row in zip(group.places, group.rows, strict=True):
        of_graph = grads[graph]
        if of_graph is not None:
            gradients.append(of_graph[position])
            rows.append(row)
    return gradients, rows


class _Signature(NamedTuple):
    """A kind of group: everything that is static in its programs.

    Attributes:
        tiles_shape: Shape of the tiles, (G, ...).
        shape: Shape of the tensors.
        part: The part of a tile that the tensors use: a position along each of its axes, or a
            (start, stop) pair.
        factor: Factor that normalises the tensors.
        num_tensors: Padded number of tensors, a power of two.
    """

    tiles_shape: tuple[int, ...]
    shape: tuple[int, ...]
    part: tuple[int | tuple[int, int], ...]
    factor: float
    num_tensors: int

    @property
    def tile_index(self) -> TileIndex:
        return tuple(p if isinstance(p, int) else slice(*p) for p in self.part)

    def rows_like(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.num_tensors,), jnp.int32)

    def pad(self, rows: Sequence[int], row: int) -> np.ndarray:
        padded = np.full(self.num_tensors, row, np.int32)
        padded[: len(rows)] = rows
        return padded


class DeviceCutting:
    """Cuts with two programs per kind of tile and tensor, forward and backward; rows are data.

    Groups are padded to powers of two to keep programs few: groups of up to n tensors need
    1 + log2(n) programs of each kind.

    Args:
        table: The table in which to declare programs.
    """

    has_programs = True

    def __init__(self, table: ProgramTable) -> None:
        self._cut = table.declare("cut", _cut)
        self._zeros = table.declare("zero tiles", lambda like: jnp.zeros(*like))
        self._add = table.declare("add gradients", _add_gradients, donates=True)

    def cut(
        self, tiles: jax.Array, groups: Iterable[TensorGroup]
    ) -> Iterator[tuple[tuple[int, int], jax.Array]]:
        """See `Cutting`."""
        for group in groups:
            signature = _sign(tiles.shape, group)
            rows = signature.pad(group.rows, group.rows[0])
            tensors = self._cut(signature, (tiles, rows))
            # Tensors of padding rows come last, and zip drops them.
            yield from zip(group.places, tensors, strict=False)

    def tile_gradients(
        self, tiles: jax.Array, groups: Iterable[TensorGroup], grads: Grads
    ) -> jax.Array:
        """See `Cutting`."""
        d_tiles = self._zeros((tiles.shape, tiles.dtype), ())
        for group in groups:
            gradients, rows = _keep(group, grads)
            if not rows:
                continue
            # Even if graphs are left out, run the program for all: it was compiled ahead.
            signature = _sign(tiles.shape, group)
            gradients += gradients[:1] * (signature.num_tensors - len(rows))
            padded = signature.pad(rows, tiles.shape[0])
            d_tiles = self._add(signature, (d_tiles, padded, gradients))
        return d_tiles

    def forward_compilations(
        self, tiles: jax.ShapeDtypeStruct, groups: Iterable[TensorGroup]
    ) -> Iterator[Compilation]:
        """See `Cutting`."""
        for group in groups:
            signature = _sign(tiles.shape, group)
            yield self._cut.compilation(signature, (tiles, signature.rows_like()))

    def backward_compilations(
        self, tiles: jax.ShapeDtypeStruct, groups: Iterable[TensorGroup]
    ) -> Iterator[Compilation]:
        """See `Cutting`."""
        yield self._zeros.compilation((tiles.shape, tiles.dtype), ())
        for group in groups:
            signature = _sign(tiles.shape, group)
            gradients = [jax.ShapeDtypeStruct(group.shape, tiles.dtype)] * signature.num_tensors
            arguments = (tiles, signature.rows_like(), gradients)
            yield self._add.compilation(signature, arguments)


def _sign(tiles_shape: tuple[int, ...], group: TensorGroup) -> _Signature:
    index = group.tile_index(tiles_shape[1:])  # slices cannot be hashed before Python 3.12
    part = tuple(p if isinstance(p, int) else (p.start or 0, p.stop) for p in index)
    padded = 1 << (len(group.rows) - 1).bit_length()
    return _Signature(tiles_shape, group.shape, part, group.factor, padded)


def _cut(signature: _Signature, tiles: jax.Array, rows: jax.Array) -> list[jax.Array]:
    shape, index = signature.shape, signature.tile_index
    return list(tile_parameters(tiles, rows, shape, index, signature.factor, jnp))


def _add_gradients(
    signature: _Signature, d_tiles: jax.Array, rows: jax.Array, gradients: Sequence[jax.Array]
) -> jax.Array:
    """Add gradients to the tiles at `rows`, dropping those for rows that do not exist."""
    index = signature.tile_index
    parts = untile_gradients(jnp.stack(gradients), index, signature.factor, jnp)
    return d_tiles.at[(rows, *index)].add(parts.reshape(d_tiles[(rows, *index)].shape), mode="drop")
