"""Terms of the loss that depend on predicted parameters only, such as a penalty on their size.

A term is computed from all parameter tensors predicted for a network. Its gradient for each tensor
is pulled back into the hypernetwork together with the gradient of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from ghn_jax.arrays import Array


class ParameterTerm(Protocol):
    """A term that is added to a network's loss."""

    def __call__(self, arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
        """Compute the term and its gradients.

        Args:
            arrays: The network's parameters, in the order of the graph's tensors.

        Returns:
            The term, (), and a gradient with the shape of each array.
        """
        ...


def norm_penalty(weight: float) -> ParameterTerm:
    """Penalise the sum of the Euclidean norms of predicted tensors p: weight * sum of |p|.

    GHN-3 was trained with this penalty and weight 3e-5 (Knyazev et al., ICML 2023, `predparam_wd`
    in its code).

    Args:
        weight: Non-negative weight of the penalty.

    Returns:
        The term. Its gradient at zero is zero.

    Raises:
        ValueError: If `weight` is negative.
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
    """Turn a function of one tensor into a term, by summing it over all tensors.

    Args:
        fn: A traceable function that maps a tensor of any shape to (). It is compiled once per
            shape.

    Returns:
        The term.
    """
    differentiate = jax.jit(jax.value_and_grad(fn))

    def term(arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
        values, gradients = zip(*map(differentiate, arrays), strict=True)
        return sum(values[1:], values[0]), list(gradients)

    return term
