"""Matrix products of two parameters, followed until they meet the data: low-rank updates.

W + A B may be reshaped to heads or to a convolution's window before use. As long as every axis is
one of A or one of B, x (A B) = (x A) B.
"""

from collections.abc import Sequence

from ghn_jax.tracing.values import Product, Weight
from ghn_jax.tracing.views import View, match_axes


def multiply(left: View, right: View, left_axis: int, right_axis: int) -> Product:
    """Return the product of two parameters, contracted along one axis of each."""
    left_axes, right_axes = list(range(len(left.shape))), list(range(len(right.shape)))
    left_axes.remove(left_axis)
    right_axes.remove(right_axis)
    return Product(
        left.transpose((*left_axes, left_axis)),
        right.transpose((right_axis, *right_axes)),
        (False,) * len(left_axes) + (True,) * len(right_axes),
    )


def transpose(product: Product, axes: Sequence[int]) -> Product:
    """Return a product with its axes in another order."""
    own = [[a for a in range(len(axes)) if product.is_right[a] == side] for side in (False, True)]
    left = [own[0].index(axis) for axis in axes if not product.is_right[axis]]
    right = [own[1].index(axis) for axis in axes if product.is_right[axis]]
    return Product(
        product.left.transpose((*left, len(left))),
        product.right.transpose((0, *(index + 1 for index in right))),
        tuple(product.is_right[axis] for axis in axes),
    )


def reshape(product: Product, shape: tuple[int, ...], new_shape: tuple[int, ...]) -> Product | None:
    """Return a product in another shape, None if that mixes axes of both factors."""
    groups = match_axes(shape, new_shape)
    if groups is None:
        return None
    flags: list[bool] = []
    for old, new in groups:
        pairs = zip(shape[old], product.is_right[old], strict=True)
        sides = {is_right for size, is_right in pairs if size > 1}
        if len(sides) > 1:
            return None
        flags += [sides.pop() if sides else False] * len(new_shape[new])
    sizes = list(zip(new_shape, flags, strict=True))
    left = [size for size, is_right in sizes if not is_right]
    right = [size for size, is_right in sizes if is_right]
    return Product(
        product.left.reshape((*left, product.left.shape[-1])),
        product.right.reshape((product.right.shape[0], *right)),
        tuple(flags),
    )


def split_at(product: Product, axes: Sequence[int]) -> tuple[View, View, list[int]] | None:
    """Divide a product into the factor that is applied first and the other one.

    Args:
        product: The product.
        axes: Those of its axes that meet the data's.

    Returns:
        The factor with these axes, (..., rank); the other one, (rank, ...); the places of the axes
        in the first. None if both factors have some of them.
    """
    sides = {product.is_right[axis] for axis in axes}
    if len(sides) != 1:
        return None
    (side,) = sides
    own = [axis for axis, is_right in enumerate(product.is_right) if is_right == side]
    if len(own) != len(axes):
        return None
    places = [own.index(axis) for axis in axes]
    left, right = product.left, product.right
    if not side:
        return left, right, places
    left_axes, right_axes = range(len(left.shape)), range(len(right.shape))
    first = right.transpose((*right_axes[1:], 0))
    return first, left.transpose((left_axes[-1], *left_axes[:-1])), places


def as_weight(view: View) -> Weight:
    """Return one parameter's view as what the rules know of a value."""
    return Weight(frozenset({view.parameter}), (view,))
