"""Graph hypernetworks: graphs -> node embeddings -> tiles -> target parameters."""

from ghn_jax.hypernetworks.config import GHNConfig, ghn1, ghn2, mlp
from ghn_jax.hypernetworks.hypernetwork import Hypernetwork
from ghn_jax.hypernetworks.tiling import TileKey, request_key, tile_parameter, untile_gradient

__all__ = [
    "GHNConfig",
    "Hypernetwork",
    "TileKey",
    "ghn1",
    "ghn2",
    "mlp",
    "request_key",
    "tile_parameter",
    "untile_gradient",
]
