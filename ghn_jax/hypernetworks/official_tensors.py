"""How official checkpoints (PyTorch, facebookresearch/ppuda) lay out the tensors of a module.

A module says so itself, in `official_tensors`: for each of its parameters the official tensor that
holds the same numbers. Each is the other one with axes split and reordered, so that one description
serves both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TensorLayout(NamedTuple):
    """The official tensor that holds a parameter.

    Attributes:
        name: of the official tensor.
        shape: of the official tensor.
        split: the same numbers with axes that ours has apart split, and those of size 1 dropped.
        axes: our axis k is axis `axes[k]` of `split`.
    """

    name: str
    shape: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]

    def to_flax(self, tensor: np.ndarray) -> np.ndarray:
        """Official layout -> ours."""
        return tensor.reshape(self.split).transpose(self.axes)

    def to_torch(self, parameter: np.ndarray) -> np.ndarray:
        """Our layout -> official."""
        return parameter.transpose(np.argsort(self.axes)).reshape(self.shape)


def linear_tensors(
    prefix: str, official: str, fan_in: int, features: int
) -> dict[str, TensorLayout]:
    """Those of a linear layer: our path's beginning, the layer's official name, its sizes."""
    return {
        f"{prefix}kernel": reordered(f"{official}.weight", (features, fan_in), (1, 0)),
        f"{prefix}bias": same(f"{official}.bias", features),
    }


def same(name: str, *shape: int) -> TensorLayout:
    """A tensor laid out as ours."""
    return reordered(name, shape, range(len(shape)))


def reordered(name: str, shape: tuple[int, ...], axes: Sequence[int]) -> TensorLayout:
    """A tensor whose axes are ours in another order."""
    return TensorLayout(name, shape, shape, tuple(axes))
