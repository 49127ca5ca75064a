"""Terms of the loss that depend on predicted parameters only, such as a penalty on their size.

In: all parameter tensors predicted for a network. Out: the term, and its gradient for each tensor,
which goes the way of the other gradients back into the hypernetwork.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from ghn_jax.arrays import Array


class ParameterTerm(Protocol):
    """A term of one network's loss."""

    def __call__(self, arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
        """Compute the term and its gradients.

        Args:
            arrays: The network's parameters, in the order of the graph's tensors.

        Returns:
            () the term, and a gradient like each array.
        """
        ...


def norm_penalty(weight: float) -> ParameterTerm:
    """Penalise the Euclidean norms of predicted tensors, each by itself: weight * sum of |p|.

    GHN-3 was trained so, with weight 3e-5 (Knyazev et al., ICML 2023, `predparam_wd` in its code).

    Args:
        weight: At least 0.

    Returns:
        The term. At zero its gradient is zero.

    Raises:
        ValueError: If the weight is negative.
    """
    if not weight >= 0:
        raise ValueError(f"weight is {weight}, expected a number of at least 0")

    def term(arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
        total, gradients = 0.0, []
        for array in arrays:
            vector = array.reshape(-1)
            norm = (vector @ vector) ** 0.5
            total = total + norm
            gradients.append(array * (weight / (norm + 1e-30)))
        return weight * total, gradients

    return term


def on_each_tensor(fn: Callable[[jax.Array], jax.Array]) -> ParameterTerm:
    """Make a term of a function of one tensor: the sum over all tensors.

    Args:
        fn: From a tensor of any shape to (), traceable; it is compiled once for each shape.

    Returns:
        The term.
    """
    differentiate = jax.jit(jax.value_and_grad(fn))

    def term(arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
        values, gradients = zip(*map(differentiate, arrays), strict=True)
        return sum(values[1:], values[0]), list(gradients)

    return term
