"""What a decoder of kernels is: node embeddings -> tiles of bounded size -> target parameters.

`DecoderProtocol` is all that the rest of the package asks of one. `Decoder` answers it for decoders
whose tiles are laid out as `TileKey` says, and leaves them two methods to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import flax.linen as nn
import jax

from ghn_jax.hypernetworks.tiling import (
    KERNEL_KINDS,
    TileIndex,
    TileKey,
    request_key,
    tile_slices,
)


class DecoderProtocol(Protocol):
    """A Flax module that decodes kernels; all but its call also work where it is not bound."""

    kinds: tuple[str, ...]
    """The kinds of tiles that it decodes; `TileKey(kind)` is a key of each."""

    def __call__(self, x: jax.Array, key: TileKey) -> jax.Array:
        """(G, D) embeddings -> (G, ...) tiles of one kind."""
        ...

    def request_key(self, shape: tuple[int, ...], role: str) -> TileKey | None:
        """The kind of tile that a tensor is cut from; None if it decodes no such tensors."""
        ...

    def tile_slices(
        self, tile_shape: tuple[int, ...], shape: tuple[int, ...], role: str
    ) -> TileIndex:
        """Where in a tile the part lies that a tensor uses: an index for the tile.

        What is there, with axes of size 1 before it where the tensor has more, is repeated along
        each axis up to the tensor's size.
        """
        ...

    def num_products(self, key: TileKey) -> int:
        """What a tile costs: multiplications. Where it is large, few tiles are padded."""
        ...


Decoders = Mapping[str, DecoderProtocol]
"""A hypernetwork's decoders by their names in the tree of its parameters; the first one chooses."""


def request_tile(decoders: Decoders, shape: tuple[int, ...], role: str) -> TileKey:
    """The kind of tile that a tensor is cut from.

    Args:
        decoders: Of the hypernetwork.
        shape: Of the tensor, Flax layout.
        role: Of the tensor.

    Returns:
        The key that the first decoder gives that decodes such tensors.

    Raises:
        ValueError: If none does.
    """
    for decoder in decoders.values():
        key = decoder.request_key(shape, role)
        if key is not None:
            return key
    names = ", ".join(type(decoder).__name__ for decoder in decoders.values())
    raise ValueError(f"role is {role!r}, which none of {names} decodes")


def decoder_name(decoders: Decoders, key: TileKey) -> str:
    """The name of the decoder of a kind of tile; ValueError if there is none."""
    for name, decoder in decoders.items():
        if key.kind in decoder.kinds:
            return name
    kinds = ", ".join(kind for decoder in decoders.values() for kind in decoder.kinds)
    raise ValueError(f"kind of {key} is {key.kind!r}, expected one of {kinds}")


class Decoder(nn.Module):
    """A decoder of kernels; subclasses write `kernel` and `classifier_kernel`.

    Attributes:
        hidden_size: D; like the others filled in by the hypernetwork, from its config.
        max_shape: (O, I, S, S), the largest tile.
        num_classes: K.
        reverse_only: Whether products may have a gradient written by hand, see `Hypernetwork`.
    """

    hidden_size: int = 0
    max_shape: tuple[int, int, int, int] = (0, 0, 0, 0)
    num_classes: int = 0
    reverse_only: bool = False

    kinds = KERNEL_KINDS

    def kernel(
        self, x: jax.Array, height: int, width: int, num_in: int | None, num_out: int | None
    ) -> jax.Array:
        """(G, D) -> (G, height, width, I, O), of I and O the first `num_in` and `num_out`."""
        raise NotImplementedError(f"{type(self).__name__}.kernel, expected of a decoder")

    def classifier_kernel(self, x: jax.Array) -> jax.Array:
        """(G, D) -> (G, I, K)."""
        raise NotImplementedError(f"{type(self).__name__}.classifier_kernel, expected of a decoder")

    def depthwise(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, 1, O): the first input channel of a kernel."""
        return self.kernel(x, height, width, 1, None)

    def position(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, I): the first output channel of a kernel."""
        return self.kernel(x, height, width, None, 1)[..., 0]

    def __call__(self, x: jax.Array, key: TileKey) -> jax.Array:
        """(G, D) -> (G, ...) tiles, laid out as `TileKey` says."""
        if key.kind == "kernel":
            bounds = (key.in_channels or None, key.out_channels or None)
            return self.kernel(x, key.height, key.width, *bounds)
        if key.kind == "depthwise":
            return self.depthwise(x, key.height, key.width)
        if key.kind == "position":
            return self.position(x, key.height, key.width)
        return self.classifier_kernel(x)

    @nn.nowrap
    def request_key(self, shape: tuple[int, ...], role: str) -> TileKey | None:
        """See `DecoderProtocol`: by the role, with bounds on a kernel's channels."""
        key = request_key(shape, role, self.max_shape)
        return key if key.kind in self.kinds else None

    @nn.nowrap
    def tile_slices(
        self, tile_shape: tuple[int, ...], shape: tuple[int, ...], role: str
    ) -> TileIndex:
        """See `DecoderProtocol`: the first channels."""
        return tile_slices(tile_shape, shape, role)

    @nn.nowrap
    def num_products(self, key: TileKey) -> int:
        """See `DecoderProtocol`: of a linear layer from D to the tile."""
        num_pixels, num_elements = self.decoded_sizes(key)
        return self.hidden_size * num_pixels * num_elements

    @nn.nowrap
    def decoded_sizes(self, key: TileKey) -> tuple[int, int]:
        """How many pixels a tile has before it is repeated, and how many elements each of them."""
        num_out, num_in, size, _ = self.max_shape
        num_pixels = min(key.height, size) * min(key.width, size)
        if key.kind == "kernel":
            return num_pixels, (key.out_channels or num_out) * (key.in_channels or num_in)
        elements = {"depthwise": num_out, "position": num_in}
        return num_pixels, elements.get(key.kind, num_out * num_in)
