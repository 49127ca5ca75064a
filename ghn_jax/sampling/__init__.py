"""Draw architectures from the DeepNets-1M space (docs/method.md, 'Sampling')."""

from ghn_jax.sampling.curriculum import CurriculumConfig
from ghn_jax.sampling.parameter_count import count_parameters
from ghn_jax.sampling.sampler import ArchitectureStream, sample_architecture
from ghn_jax.sampling.space import SPLITS, SpaceConfig, SplitRules

__all__ = [
    "SPLITS",
    "ArchitectureStream",
    "CurriculumConfig",
    "SpaceConfig",
    "SplitRules",
    "count_parameters",
    "sample_architecture",
]
