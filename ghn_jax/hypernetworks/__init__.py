"""Graph hypernetworks: graphs -> node embeddings -> tiles -> target parameters."""

from ghn_jax.hypernetworks.config import GHNConfig, ghn1, ghn2, mlp
from ghn_jax.hypernetworks.embedding import ShapeVocabulary, shape_vocabulary
from ghn_jax.hypernetworks.model import (
    Hypernetwork,
    initialize,
    parameter_shapes,
    predict_parameters,
)
from ghn_jax.hypernetworks.tiling import TileKey, request_key, tile_parameter

__all__ = [
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
    "request_key",
    "shape_vocabulary",
    "tile_parameter",
]
