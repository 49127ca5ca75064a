"""How official checkpoints (PyTorch, facebookresearch/ppuda) lay out a module's tensors.

Each module says so itself in `official_tensors`, which maps each of its parameters to the official
tensor that holds the same numbers. One is the other with axes split and reordered, so a single
description serves both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TensorLayout(NamedTuple):
    """The official tensor that holds a parameter.

    Attributes:
        name: The official tensor's name.
        shape: The official tensor's shape.
        split: The official shape after splitting axes that are separate in our parameter, and
            dropping axes of size 1.
        axes: Our axis k is axis `axes[k]` of `split`.
    """

    name: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]

    def to_flax(self, tensor: np.ndarray) -> np.ndarray:
        """Convert from the official layout to ours."""
        return tensor.reshape(self.split).transpose(self.axes)

    def to_torch(self, parameter: np.ndarray) -> np.ndarray:
        """Convert from our layout to the official one."""
        return parameter.transpose(np.argsort(self.axes)).reshape(self.shape)


def linear_tensors(
    prefix: str, official: str, fan_in: int, features: int
) -> dict[str, TensorLayout]:
    """Describe a linear layer, under `prefix` in our tree and named `official` in the original."""
    return {
        f"{prefix}kernel": reordered(f"{official}.weight", (features, fan_in), (1, 0)),
        f"{prefix}bias": same(f"{official}.bias", features),
    }


def same(name: str, *shape: int) -> TensorLayout:
    """Describe a tensor laid out like ours."""
    return reordered(name, shape, range(len(shape)))


def reordered(name: str, shape: tuple[int, ...], axes: Sequence[int]) -> TensorLayout:
    """Describe a tensor whose axes are ours in another order."""
    return TensorLayout(name, shape, shape, tuple(axes))
