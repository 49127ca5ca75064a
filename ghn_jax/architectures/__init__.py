"""The architecture space: validated descriptions of cells and networks (docs/method.md)."""

from ghn_jax.architectures.genotype import (
    ATTENTION_HEADS,
    OPERATIONS,
    UNLEARNED_OPERATIONS,
    Architecture,
    Genotype,
    NodeOp,
    ResNet,
)
from ghn_jax.architectures.predefined import PREDEFINED, RESNET50, VIT, darts

__all__ = [
    "ATTENTION_HEADS",
    "OPERATIONS",
    "PREDEFINED",
    "RESNET50",
    "UNLEARNED_OPERATIONS",
    "VIT",
    "Architecture",
    "Genotype",
    "NodeOp",
    "ResNet",
    "darts",
]
