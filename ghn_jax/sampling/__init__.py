"""Drawing architectures of the DeepNets-1M space (spec section 1)."""

from ghn_jax.sampling.sampler import (
    ArchitectureStream,
    Draw,
    draw_architecture,
    sample_architecture,
)
from ghn_jax.sampling.space import SPLITS, SpaceConfig, SplitRules

__all__ = [
    "SPLITS",
    "ArchitectureStream",
    "Draw",
    "SpaceConfig",
    "SplitRules",
    "draw_architecture",
    "sample_architecture",
]
