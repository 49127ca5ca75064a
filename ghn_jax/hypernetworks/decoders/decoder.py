"""What a kernel decoder is: node embeddings -> tiles of bounded size -> target parameters.

`DecoderProtocol` is all that the rest of the package needs from one. `Decoder` implements it for
decoders whose tiles are laid out as `TileKey` says, and leaves two methods for them to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

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
    """A Flax module that decodes kernels; everything but its call also works unbound."""

    kinds: tuple[str, ...]
    """The kinds of tiles it decodes; `TileKey(kind)` is a valid key for each."""

    def __call__(self, x: jax.Array, key: TileKey) -> jax.Array:
        """(G, D) embeddings -> (G, ...) tiles of one kind."""
        ...

    def request_key(self, shape: tuple[int, ...], role: str) -> TileKey | None:
        """Return the kind of tile a tensor is cut from; None if it does not decode such tensors."""
        ...

    def tile_slices(
        self, tile_shape: tuple[int, ...], shape: tuple[int, ...], role: str
    ) -> TileIndex:
        """Return the index of the part of a tile that a tensor uses.

        If the tensor has more axes than that part, axes of size 1 are put before it. The part is
        then repeated along each axis up to the tensor's size.
        """
        ...

    def num_products(self, key: TileKey) -> int:
        """Count the multiplications a tile takes; requests for expensive tiles are padded less."""
        ...


Decoders = Mapping[str, DecoderProtocol]
"""A hypernetwork's decoders by their names in its parameter tree; earlier ones take precedence."""


def request_tile(decoders: Decoders, shape: tuple[int, ...], role: str) -> TileKey:
    """Choose the kind of tile that a tensor is cut from.

    Args:
        decoders: The hypernetwork's decoders.
        shape: The tensor's shape, in Flax layout.
        role: The tensor's role.

    Returns:
        The key from the first decoder that decodes such tensors.

    Raises:
        ValueError: If no decoder does.
    """
    for decoder in decoders.values():
        key = decoder.request_key(shape, role)
        if key is not None:
            return key
    names = ", ".join(type(decoder).__name__ for decoder in decoders.values())
    raise ValueError(f"role is {role!r}, which none of {names} decodes")


def decoder_name(decoders: Decoders, key: TileKey) -> str:
    """Return the name of the decoder for a kind of tile; ValueError if there is none."""
    for name, decoder in decoders.items():
        if key.kind in decoder.kinds:
            return name
    kinds = ", ".join(kind for decoder in decoders.values() for kind in decoder.kinds)
    raise ValueError(f"kind of {key} is {key.kind!r}, expected one of {kinds}")


class TileModule(nn.Module):
    """The part of `DecoderProtocol` that follows from the layout of tiles, see `TileKey`."""

    kinds: ClassVar[tuple[str, ...]] = ()

    @nn.nowrap
    def request_key(self, shape: tuple[int, ...], role: str) -> TileKey | None:
        """See `DecoderProtocol`. The role decides; kernels are bounded by `max_shape`, if any."""
        key = request_key(shape, role, getattr(self, "max_shape", None))
        return key if key.kind in self.kinds else None

    @nn.nowrap
    def tile_slices(
        self, tile_shape: tuple[int, ...], shape: tuple[int, ...], role: str
    ) -> TileIndex:
        """See `DecoderProtocol`. A tensor uses the tile's first channels."""
        return tile_slices(tile_shape, shape, role)


class Decoder(TileModule):
    """A kernel decoder; subclasses implement `kernel` and `classifier_kernel`.

    The hypernetwork fills in the attributes from its config.

    Attributes:
        hidden_size: Width D of the node embeddings.
        max_shape: (O, I, S, S), the largest tile.
        num_classes: Number of classes K.
        reverse_only: Whether products may use a hand-written gradient; see `Hypernetwork`.
    """

    hidden_size: int = 0
    max_shape: tuple[int, int, int, int] = (0, 0, 0, 0)
    num_classes: int = 0
    reverse_only: bool = False

    kinds = KERNEL_KINDS

    def kernel(
        self, x: jax.Array, height: int, width: int, num_in: int | None, num_out: int | None
    ) -> jax.Array:
        """(G, D) -> (G, height, width, I, O), or only the first `num_in` of I, `num_out` of O."""
        raise NotImplementedError(f"{type(self).__name__}.kernel, expected of a decoder")

    def classifier_kernel(self, x: jax.Array) -> jax.Array:
        """(G, D) -> (G, I, K)."""
        raise NotImplementedError(f"{type(self).__name__}.classifier_kernel, expected of a decoder")

    def depthwise(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, 1, O): a kernel's first input channel."""
        return self.kernel(x, height, width, 1, None)

    def position(self, x: jax.Array, height: int, width: int) -> jax.Array:
        """(G, D) -> (G, height, width, I): a kernel's first output channel."""
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
    def num_products(self, key: TileKey) -> int:
        """See `DecoderProtocol`. Counts a linear layer from D to the tile."""
        num_pixels, num_elements = self.decoded_sizes(key)
        return self.hidden_size * num_pixels * num_elements

    @nn.nowrap
    def decoded_sizes(self, key: TileKey) -> tuple[int, int]:
        """Return a tile's number of pixels before it is repeated, and of elements in each pixel."""
        num_out, num_in, size, _ = self.max_shape
        num_pixels = min(key.height, size) * min(key.width, size)
        if key.kind == "kernel":
            return num_pixels, (key.out_channels or num_out) * (key.in_channels or num_in)
        elements = {"depthwise": num_out, "position": num_in}
        return num_pixels, elements.get(key.kind, num_out * num_in)
