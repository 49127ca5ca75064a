"""Kernels put together from several parameters: concatenated, or with a low-rank update.

A product is linear in them, so that each is a linear layer of its own: x [A, B] = [x A, x B] and
x (W + A B) = x W + (x A) B.
"""

import dataclasses
from collections.abc import Sequence

from ghn_jax.tracing.registry import derived
from ghn_jax.tracing.rules.products import as_weight
from ghn_jax.tracing.values import Joined, Weight


def join(weights: Sequence[Weight], sizes: Sequence[int], axis: int) -> Weight:
    """Return the concatenation of weights, given their sizes along the axis."""
    joined = Joined(tuple(weights), tuple(sizes), axis)
    return dataclasses.replace(derived(*weights), joined=joined)


def can_join(weight: Weight) -> bool:
    """Return whether a weight is a rearrangement of one parameter and nothing else."""
    is_compound = weight.products or weight.chosen_by or weight.norm or weight.joined
    return len(weight.views) == 1 and not is_compound


def add(left: Weight, right: Weight) -> Weight | None:
    """Return the sum of weights of which one is a matrix product; None if it is another sum."""
    if not (left.products or right.products) or not all(map(_is_sum, (left, right))):
        return None
    total = derived(left, right)
    return dataclasses.replace(
        total, views=(*left.views, *right.views), products=(*left.products, *right.products)
    )


def is_compound(weight: Weight) -> bool:
    """Return whether a function of a weight is not that of one parameter."""
    return bool(weight.products) or len(weight.views) > 1


def split_terms(weight: Weight) -> list[Weight]:
    """Return the terms of a sum, each with one view or one product."""
    products = [
        Weight(frozenset({product.left.parameter, product.right.parameter}), products=(product,))
        for product in weight.products
    ]
    return [*map(as_weight, weight.views), *products]


def move_axis(shape: Sequence[int], new_shape: Sequence[int], axis: int) -> int | None:
    """Return where an axis is after a reshape that only adds or removes axes of size 1."""
    if [size for size in shape if size > 1] != [size for size in new_shape if size > 1]:
        return None
    place = sum(size > 1 for size in shape[:axis])
    wide = [index for index, size in enumerate(new_shape) if size > 1]
    return wide[place] if shape[axis] > 1 else None


def with_size(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    """Return a shape with another size of one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def find_part(joined: Joined, start: int, stop: int) -> Weight | None:
    """Return the weight that lies between two places along the axis of a concatenation."""
    place = 0
    for weight, size in zip(joined.weights, joined.sizes, strict=True):
        if (place, place + size) == (start, stop):
            return weight
        place += size
    return None


def is_vector(weight: Weight) -> bool:
    """Return whether a weight has one axis only, whatever it is repeated along."""
    return all(sum(size > 1 for size in view.shape) <= 1 for view in weight.views)


def _is_sum(weight):
    return bool(weight.views or weight.products) and not (weight.norm or weight.chosen_by)
