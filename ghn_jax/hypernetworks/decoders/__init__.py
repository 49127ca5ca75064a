"""Decoders: node embeddings -> tiles, one array per kind of tile."""

# Importing a decoder registers it.
from ghn_jax.hypernetworks.decoders.conv import ConvDecoder
from ghn_jax.hypernetworks.decoders.decoder import (
    Decoder,
    DecoderProtocol,
    Decoders,
    decoder_name,
    request_tile,
)
from ghn_jax.hypernetworks.decoders.mlp import MLPDecoder
from ghn_jax.hypernetworks.decoders.registry import DECODERS, DecoderConfig, register_decoder
from ghn_jax.hypernetworks.decoders.vectors import VectorDecoder

__all__ = [
    "DECODERS",
    "ConvDecoder",
    "Decoder",
    "DecoderConfig",
    "DecoderProtocol",
    "Decoders",
    "MLPDecoder",
    "VectorDecoder",
    "decoder_name",
    "register_decoder",
    "request_tile",
]
