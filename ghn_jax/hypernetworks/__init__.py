"""Graph hypernetworks: graphs -> node embeddings -> tiles -> target parameters."""

from ghn_jax.hypernetworks.config import GHNConfig, ghn1, ghn2, mlp
from ghn_jax.hypernetworks.decoders import Decoder, register_decoder
from ghn_jax.hypernetworks.embedding import ShapeVocabulary, shape_vocabulary
from ghn_jax.hypernetworks.message_passing import register_message_passing
from ghn_jax.hypernetworks.model import (
    Hypernetwork,
    initialize,
    parameter_shapes,
    predict_parameters,
)
from ghn_jax.hypernetworks.tiling import TileKey

__all__ = [
    "Decoder",
    "GHNConfig",
    "Hypernetwork",
    "ShapeVocabulary",
    "TileKey",
    "ghn1",
    "ghn2",
    "initialize",
    "mlp",
    "parameter_shapes",
    "predict_parameters",
    "register_decoder",
    "register_message_passing",
    "shape_vocabulary",
]
