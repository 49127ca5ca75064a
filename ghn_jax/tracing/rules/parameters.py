"""Elementwise functions of parameters, before they meet the data.

A function with an inverse is followed (`ghn_jax.tracing.functions`): the parameter then holds the
inverse of what is predicted. Other functions are followed, too, so that the parameter is found
where it is used, and kept there for that reason.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.functions import Function
from ghn_jax.tracing.registry import derived
from ghn_jax.tracing.values import Constant, Value, Weight

_SQUARE = Function("pow", 2.0)


def apply_function(eqn: Any, inputs: Sequence[Value]) -> Weight:
    """Return an elementwise function of a parameter, whose other inputs are constants."""
    name = eqn.primitive.name
    if name == "clamp":
        low, weight, high = inputs
        return _bound(_bound(weight, "max", low), "min", high)
    (weight,) = inputs
    assert isinstance(weight, Weight)
    if name.startswith("cum"):
        return derived(weight)
    if name == "integer_pow":
        return _raise(weight, eqn.params["y"])
    if name in ("sqrt", "rsqrt", "square"):
        return _raise(weight, {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0}[name])
    return as_right_operand("sub", weight) if name == "neg" else weight.through(Function(name))


def combine_with_constant(
    builder: GraphBuilder,
    name: str,
    weight: Weight,
    constant: Constant,
    constant_shape: Sequence[int],
    is_right: bool,
) -> Weight:
    """Return a parameter combined with a constant.

    Args:
        builder: Knows which axes hold the batch.
        name: The primitive.
        weight: The parameter.
        constant: The constant.
        constant_shape: Its shape, of as many axes as that of the parameter, or none.
        is_right: Whether the parameter is the right operand.
    """
    value = constant.value
    if value is None and _spreads(builder, constant_shape, weight):
        return weight.through(Function("an outer product with constants"))
    if name in ("mul", "div"):
        return _multiply(name, weight, value, is_right)
    if name in ("add", "sub", "add_any"):
        return _add(name, weight, value, is_right)
    if name in ("max", "min"):
        return _bound(weight, name, constant)
    if name == "pow" and value is not None and not is_right:
        return _raise(weight, value)
    if name == "pow" and value is not None and value > 0 and value != 1:
        return weight.through(Function("mul", math.log(value))).through(Function("exp"))
    return weight.through(Function(name))


def as_right_operand(name: str, weight: Weight) -> Weight:
    """Return minus the parameter behind a minus, its reciprocal behind a fraction bar."""
    if name == "sub":
        return weight.through(Function("mul", -1.0))
    return weight.through(Function("reciprocal")) if name == "div" else weight


def combine_with_itself(name: str, left: Weight, right: Weight) -> Weight | None:
    """Return two functions of the same elements, combined; None if they are of others."""
    if left.norm != right.norm or _elements(left) != _elements(right):
        return None
    if left.views != right.views:
        return left.through(Function("several functions of itself"))
    if name == "add":
        return left.through(Function("mul", 2.0))
    if name == "mul":
        return _raise(left, 2)
    return left if name in ("max", "min") else derived(left)


def sum_squares(weight: Weight) -> Weight:
    """Return the sum along some axes of a parameter, which may have been squared before."""
    is_square = len(weight.views) == 1 and weight.views[0].functions[-1:] == (_SQUARE,)
    squared = weight.parameters if is_square else frozenset[int]()
    return dataclasses.replace(derived(weight), squared=squared)


def _elements(weight):
    return [dataclasses.replace(view, functions=()) for view in weight.views]


def _spreads(builder, shape, weight):
    """Return whether a table of constants has entries of its own where a parameter repeats."""
    return any(
        size > 1 and repeated == 1 and not builder.has_batch((size,))
        for view in weight.views
        for size, repeated in zip(shape, view.shape, strict=False)
    )


def _multiply(name, weight, constant, is_right):
    weight = as_right_operand(name, weight) if is_right else weight
    if constant is None:  # a mask: the masked kernel is that of the GHN, masked
        return weight
    if constant == 0:
        return weight.through(Function("a product with zero"))
    factor = 1 / constant if name == "div" and not is_right else constant
    return weight.through(Function("mul", factor))


def _add(name, weight, constant, is_right):
    weight = as_right_operand(name, weight) if is_right else weight
    if constant is None:
        return weight.through(Function("a sum with a table of constants"))
    shift = -constant if name == "sub" and not is_right else constant
    return weight.through(Function("add", shift)) if shift else weight


def _bound(weight, side, bound):
    is_known = isinstance(bound, Constant) and bound.value is not None
    return weight.through(Function(side, bound.value) if is_known else Function("clamp"))


def _raise(weight, exponent):
    if exponent == 0:
        return weight.through(Function("a power of zero"))
    if exponent > 0 and exponent % 2 == 1:
        return weight if exponent == 1 else weight.through(Function("odd_pow", float(exponent)))
    return weight.through(Function("pow", float(exponent)))
