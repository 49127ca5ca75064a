"""Decoders: node embeddings -> tiles, one array per kind of tile."""

import flax.linen as nn

from ghn_jax.hypernetworks.decoders.conv import ConvDecoder
from ghn_jax.hypernetworks.decoders.mlp import MLPDecoder
from ghn_jax.hypernetworks.decoders.vectors import VectorDecoder

__all__ = ["KERNEL_DECODERS", "ConvDecoder", "MLPDecoder", "VectorDecoder"]

KERNEL_DECODERS: dict[str, type[nn.Module]] = {"conv": ConvDecoder, "mlp": MLPDecoder}
