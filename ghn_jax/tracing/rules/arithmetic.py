"""Elementwise primitives: biases, norms, gates, residual sums, and activations, which are no nodes.

A norm arrives in many spellings: (x - mean) * rsqrt(var + eps) * scale + bias,
x * (scale * rsqrt(var)) + (bias - mean * scale * rsqrt(var)), with moments of the batch, of the
features or running ones. All have in common that something of the node, or of running statistics,
with a square root in it multiplies the data, a parameter scales and another shifts them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.registry import derived, keep_weights, register_rule, unknown
from ghn_jax.tracing.rules.compounds import add
from ghn_jax.tracing.rules.parameters import (
    apply_function,
    as_right_operand,
    combine_with_constant,
    combine_with_itself,
)
from ghn_jax.tracing.rules.scales import apply_parameter
from ghn_jax.tracing.rules.shifted import add_taps
from ghn_jax.tracing.rules.tokens import as_data, choose, join_product
from ghn_jax.tracing.values import Constant, Data, Value, Weight

_PRODUCTS = ("mul", "div")
_SUMS = ("add", "sub", "add_any")
_TURNED = {"sub": "add", "div": "mul"}  # with a negated or inverted right operand
_DEVIATIONS = ("sqrt", "rsqrt", "pow", "cbrt")


@register_rule(
    "add", "sub", "mul", "div", "max", "min", "pow", "add_any", "atan2", "rem", "nextafter"
)
def _binary(builder, eqn, inputs):
    name = eqn.primitive.name
    left, right = inputs
    shapes = [var.aval.shape for var in eqn.invars]
    if isinstance(left, Constant) and isinstance(right, Constant):
        return Constant(
            left.is_state or right.is_state,
            left.is_deviation or right.is_deviation or name == "pow",
            _fold(name, left.value, right.value),
        )
    if isinstance(left, Weight) and isinstance(right, Weight):
        return _combine_weights(builder, name, left, right, shapes)
    if isinstance(left, Constant) or isinstance(right, Constant):
        constant, value = (left, right) if isinstance(left, Constant) else (right, left)
        constant_shape = shapes[0] if isinstance(left, Constant) else shapes[1]
        if isinstance(value, Weight):
            if name in _PRODUCTS and constant.is_state and constant.is_deviation:
                return dataclasses.replace(value, norm="bn")
            return combine_with_constant(
                builder, name, value, constant, constant_shape, value is right
            )
        return _with_constant(builder, name, value, constant, constant_shape, value is right)
    if isinstance(left, Data) and isinstance(right, Data):
        if name == "mul" and eqn.invars[0] is eqn.invars[1]:
            return _square(builder, left)
        return _combine_data(builder, name, left, right)
    shape = eqn.outvars[0].aval.shape
    if isinstance(left, Data):
        turned = as_right_operand(name, right)
        return apply_parameter(builder, _TURNED.get(name, name), left, turned, shape)
    if name == "div" and right.statistic is None:
        keep_weights(builder, [left], "is divided by data")
        return Data((builder.node_of(right),))
    return apply_parameter(builder, name, right, left, shape, is_difference=name == "sub")


_FOLDS: dict[str, Callable] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power,
    "max": np.maximum, "min": np.minimum, "sqrt": np.sqrt, "neg": np.negative, "exp": np.exp,
    "log": np.log, "rsqrt": lambda x: 1 / np.sqrt(x), "square": np.square,
}  # fmt: skip


def _fold(name, *values):
    """Return the value of an operation on constants, None if it is not known or not finite."""
    if name not in _FOLDS or any(value is None for value in values):
        return None
    with np.errstate(all="ignore"):
        folded = float(_FOLDS[name](*map(np.float64, values)))
    return folded if math.isfinite(folded) else None


_UNARY = (
    "rsqrt sqrt cbrt exp exp2 log log1p expm1 tanh logistic erf erfc erf_inv neg abs sign floor"
    " ceil round sin cos tan square integer_pow not is_finite clamp cumsum cumlogsumexp cummax"
    " cumprod sinh cosh asinh acosh atanh"
).split()


@register_rule(*_UNARY)
def _unary(builder, eqn, inputs):
    name = eqn.primitive.name
    if name == "clamp" and any(isinstance(bound, Data) for bound in inputs[::2]):
        return unknown(builder, eqn, inputs)
    value = inputs[1] if name == "clamp" else inputs[0]
    takes_root = name in _DEVIATIONS or (name == "integer_pow" and eqn.params["y"] < 0)
    if isinstance(value, Constant):
        folded = _fold(name, value.value)
        return Constant(value.is_state, value.is_deviation or takes_root, folded)
    if isinstance(value, Weight):
        return apply_function(eqn, inputs)
    bounds = [bound for bound in inputs if bound is not value and isinstance(bound, Weight)]
    keep_weights(builder, bounds, "bounds the data")
    if value.statistic is not None:
        return _mark_deviation(value, _exponent(eqn)) if takes_root else value
    if name in ("sin", "cos"):
        return _enter_wave(builder, value, name)
    if name in ("exp", "exp2"):
        builder.specify(value, "is a temperature or the scale of an exponent")
    if name in ("square", "abs") or (name == "integer_pow" and eqn.params["y"] % 2 == 0):
        return _square(builder, value)
    return _activate(builder, value, is_exponential=name in ("exp", "exp2"))


@register_rule("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor")
def _compare(builder, eqn, inputs):
    weights = [value for value in inputs if isinstance(value, Weight)]
    data = [value for value in inputs if isinstance(value, Data)]
    if data:
        keep_weights(builder, weights, "only enters a comparison")
        return Data((builder.merge("sum", map(builder.node_of, data)),), is_mask=True)
    return derived(*weights) if weights else Constant()


@register_rule("select_n")
def _select(builder, eqn, inputs):
    mask, *values = inputs
    cases = [value for value in values if not isinstance(value, Constant)]
    if isinstance(mask, Weight):
        keep_weights(builder, [mask], "only chooses between values")
        if not cases:
            return derived(mask)
    if isinstance(mask, Data) and not any(isinstance(case, Data) for case in cases):
        return _select_by_data(builder, mask, cases)
    if not cases:
        return Constant(any(value.is_state for value in values))
    total = join_cases(builder, cases)
    if isinstance(mask, Data) and isinstance(total, Data) and total.statistic is None:
        return choose(builder, total, mask)
    return total


def _select_by_data(builder, mask, cases):
    """Return a choice between constants and parameters."""
    if not cases:
        return Data((builder.node_of(mask),), is_mask=True)
    if len(cases) == 1 and cases[0].chosen_by:
        if builder.leads_to(mask.nodes, cases[0].chosen_by):  # an index that is out of bounds
            return cases[0]
    if mask.statistic is not None and mask.statistic.norm == "bn":
        return join_cases(builder, cases)
    return join_cases(builder, [Data((builder.node_of(mask),)), *cases])


def join_cases(builder: GraphBuilder, cases: Sequence[Value]) -> Value:
    """Return what one of several values is, of which none is a constant."""
    total, *others = map(builder.look_up, cases)
    for case in others:
        if case != total:
            total = _merge_cases(builder, total, case)
    return total


def _merge_cases(builder, one, other):
    if isinstance(one, Weight) and isinstance(other, Weight):
        return derived(one, other)
    if isinstance(one, Data) and isinstance(other, Data):
        same = _of_one_node(builder, one, other)
        if same is not None:
            return same
    nodes = []
    for value in (one, other):
        if isinstance(value, Weight) and not value.views:
            keep_weights(builder, [value], "is chosen by a mask")
            continue
        data = as_data(builder, value) if isinstance(value, Weight) else value
        nodes.append(builder.node_of(data))
    return Data((builder.merge("sum", nodes),))


def _mark_deviation(value, exponent=1.0):
    statistic = dataclasses.replace(value.statistic.raised(exponent), is_deviation=True)
    return dataclasses.replace(value, statistic=statistic)


def _exponent(eqn):
    exponents = {"sqrt": 0.5, "rsqrt": -0.5, "cbrt": 1 / 3}
    return float(exponents.get(eqn.primitive.name) or eqn.params["y"])


def _activate(builder, value, is_exponential=False):
    if len(value.taps) > 1:
        value = Data((builder.node_of(value),))
    return Data(
        value.nodes,
        is_exponential=is_exponential,
        is_product=value.is_product,
        is_mask=value.is_mask,
        part=value.part,
        shift=value.shift,
        within=value.within,
    )


def _square(builder, value):
    if value.statistic is not None:
        return value
    activated = _activate(builder, value)
    return dataclasses.replace(activated, within=activated.within or "distance")


def _enter_wave(builder, value, name):
    activated = _activate(builder, value)
    builder.note_wave(activated, name)
    return dataclasses.replace(activated, within=activated.within or "wave")


def _of_one_node(builder, one, other):
    """Return two functions of a node as one activation, if a parameter scales one of them.

    Such as PReLU, or x * sigmoid(scale * x). None if they are something else.
    """
    if one.nodes == other.nodes and (one.gates or other.gates):
        for value in (one, other):
            builder.specify(value, _SLOPE)
        return Data(one.nodes, within=one.within if one.within == other.within else None)
    for value, plain in ((one, other), (other, one)):
        found = builder.affine.get(value.nodes[0]) if len(value.nodes) == 1 else None
        if value.statistic or plain.statistic or found is None or found.kind != "scale":
            continue
        if plain.nodes == (found.source,):
            builder.keep(found.parameters, _SLOPE)
            return Data(plain.nodes, within=plain.within)
    return None


_SLOPE = "is the slope of an activation"


def _with_constant(builder, name, value, constant, constant_shape, is_right):
    if value.statistic is not None:
        return _change_statistic(name, value, constant.value, is_right)
    if name in _PRODUCTS:
        if constant.is_state and constant.is_deviation:
            return dataclasses.replace(value, norm="bn")
        if value.norm and constant.value:
            factor = 1 / constant.value if name == "div" else constant.value
            value = dataclasses.replace(value, norm_gain=value.norm_gain * factor)
        is_table = any(size > 1 for size in constant_shape)
        if is_table and len(value.taps) == 1:  # as in rotary embeddings: no window of a pool
            return dataclasses.replace(value, taps=frozenset())
        return value
    if name in _SUMS:
        return value
    return _activate(builder, value)


def _change_statistic(name, value, constant, is_right):
    statistic = value.statistic
    if name == "pow":
        return _mark_deviation(value, constant if constant and not is_right else 1.0)
    if name in _PRODUCTS:
        if name == "div" and is_right:
            statistic = statistic.raised(-1)
        divides = name == "div" and not is_right
        statistic = statistic.scaled(1 / constant if constant and divides else constant)
    return dataclasses.replace(value, statistic=statistic)


def _combine_weights(builder, name, left, right, shapes):
    if left.is_stopped != right.is_stopped and left.parameters & right.parameters:
        return right if left.is_stopped else left  # a straight-through estimator
    total = add(left, as_right_operand(name, right)) if name in _SUMS else None
    if total is not None:
        return total
    if not left.views and not right.views:
        return derived(left, right)
    if not right.views or not left.views:
        whole, other = (left, right) if left.views else (right, left)
        # Such as the kernel's own moments in weight standardisation.
        keep_weights(builder, [other], "only changes another parameter")
        whole = as_right_operand(name, whole) if whole is right else whole
        return dataclasses.replace(whole, parameters=left.parameters | right.parameters)
    own = combine_with_itself(name, left, right)
    if own is not None:
        return own
    batches = [builder.has_batch(shape) for shape in shapes]
    if any(batches) and not (left.norm or right.norm):
        values: list[Any] = [
            as_data(builder, weight) if batch else weight
            for weight, batch in zip((left, right), batches, strict=True)
        ]
        if all(batches):
            return _combine_data(builder, name, *values)
        if batches[0]:
            kernel = as_right_operand(name, values[1])
            name = _TURNED.get(name, name)
            return apply_parameter(builder, name, values[0], kernel, shapes[0])
        return apply_parameter(builder, name, values[1], values[0], shapes[1])
    if name in _SUMS:
        right = as_right_operand(name, right)
        if bool(left.norm) != bool(right.norm):  # bias - mean * scale / std: the bias
            return left if right.norm else right
        return Weight(left.parameters | right.parameters, (*left.views, *right.views))
    if name not in _PRODUCTS:
        return derived(left, right)
    main, other = sorted((left, right), key=lambda weight: -weight.views[0].size)
    keep_weights(builder, [other], "only scales another parameter")
    return as_right_operand(name, main) if main is right else main


def _combine_data(builder, name, left, right):
    if left.is_mask or right.is_mask:
        return _combine_mask(builder, name, left, right)
    if left.statistic is not None and right.statistic is not None:
        return _combine_statistics(builder, name, left, right)
    if left.statistic is not None or right.statistic is not None:
        statistic, data = (left, right) if left.statistic is not None else (right, left)
        if _is_statistic_of(builder, statistic, data):
            return _normalize(builder, name, data, statistic)
        if name in _PRODUCTS and _is_total_of_attention(builder, statistic, data):
            return data
        return _combine_nodes(builder, name, left, right)
    if left.is_product or right.is_product:
        return join_product(builder, name, left, right)
    if left.nodes == right.nodes:
        return _combine_same(builder, name, left, right)
    return _combine_nodes(builder, name, left, right)


def _combine_mask(builder, name, left, right):
    """Masks choose between values, which say where data come from."""
    mask, data = (left, right) if left.is_mask else (right, left)
    if not data.is_mask and builder.leads_to(mask.nodes, data.nodes):
        plain = name in (*_PRODUCTS, *_SUMS) or data.statistic is not None
        return data if plain else _activate(builder, data)
    if data.is_mask:
        total = next((value for value in (left, right) if value.statistic is None), left)
        if left.nodes == right.nodes:
            return total
        return Data((builder.merge("sum", map(builder.node_of, (left, right))),), is_mask=True)
    if data.is_product:
        return join_product(builder, name, left, right)
    return _combine_nodes(builder, name, left, right)


def _combine_statistics(builder, name, left, right):
    if left.nodes == right.nodes:
        total = _mark_deviation(left) if right.statistic.is_deviation else left
        return dataclasses.replace(
            total, is_exponential=left.is_exponential or right.is_exponential
        )
    for data, statistic in ((left, right), (right, left)):
        pooled = builder.node_of(data)
        if statistic.nodes == (pooled,):  # pooled data and a moment of theirs
            return _normalize(builder, name, Data((pooled,)), statistic)
    return _combine_nodes(builder, name, left, right)


def _is_statistic_of(builder, statistic, data):
    if statistic.nodes == data.nodes:
        return True
    return len(statistic.nodes) == 1 and builder.is_pool_of(statistic.nodes[0], data.nodes)


def _is_total_of_attention(builder, statistic, data):
    """Return whether a softmax is divided by its sums only after the product with the values."""
    if not statistic.is_exponential or not statistic.is_product or len(data.nodes) != 1:
        return False
    node = builder.nodes[data.nodes[0]]
    return node.primitive == "msa" and set(statistic.nodes) <= set(node.parents)


def _normalize(builder, name, data, statistic):
    if name in _PRODUCTS and (statistic.statistic.is_deviation or name == "div"):
        if data.is_exponential and statistic.is_exponential:
            is_router = not data.is_product and builder.is_router(data.nodes, statistic)
            return Data(
                data.nodes,
                is_softmax=not is_router,
                is_product=data.is_product,
                within=data.within,
            )
        moment = statistic.statistic
        gain = moment.gain_of(name)
        return Data(
            data.nodes,
            norm=moment.norm,
            norm_gain=gain,
            is_product=data.is_product,
            within=data.within,
            is_mask=data.is_mask,
            part=data.part,
        )
    return dataclasses.replace(data, open_norm=None)


def _combine_same(builder, name, left, right):
    same = _of_one_node(builder, left, right)
    if same is not None:
        return same
    kind = {"add": "avg", "max": "max"}.get(name)
    taps = left.taps | right.taps
    if (
        kind
        and not (left.within or right.within)
        and left.taps
        and right.taps
        and left.taps != right.taps
        and _overlap(taps)
    ):
        if {left.taps_kind, right.taps_kind} <= {None, kind}:
            return Data(left.nodes, taps=taps, taps_kind=kind)
    if name in _PRODUCTS and _are_apart(left.part, right.part):  # a gated linear unit
        return Data((builder.node("cse", (builder.node_of(left),)),))
    part = left.part if left.part == right.part else ()
    shift = left.shift if left.shift == right.shift else ()
    if left == right:
        return Data(left.nodes, within=left.within, part=part, shift=shift)
    nodes = (builder.node_of(left), builder.node_of(right))
    if nodes[0] != nodes[1]:
        return _combine_nodes(builder, name, left, right)
    return Data((nodes[0],), part=part, shift=shift)


def _are_apart(left, right):
    """Return whether two parts of a node have no element in common."""
    for one, other in zip(left, right, strict=False):
        if one != other:
            return len(one) == len(other) and any(map(_is_disjoint, one, other))
    return False


def _is_disjoint(one, other):
    if not (one and other):
        return True
    if one.step == other.step and (one.start - other.start) % one.step:
        return True
    return one[-1] < other[0] or other[-1] < one[0]


def _overlap(taps):
    """Return whether slices are taps of a window: overlapping or interleaved, not halves."""
    shapes = {shape for _, _, shape in taps}
    if len(shapes) > 1:
        return False
    (shape,) = shapes
    starts = list(zip(*(start for start, _, _ in taps), strict=True))
    strides = next(iter(taps))[1]
    return all(
        max(axis) - min(axis) < size or stride > 1
        for axis, size, stride in zip(starts, shape, strides, strict=True)
    )


def _combine_nodes(builder, name, left, right):
    taps = add_taps(builder, left, right) if name in ("add", "add_any") else None
    if taps is not None:
        return taps
    same = _of_one_node(builder, left, right)
    if same is not None:
        return same
    if name in _SUMS:
        for value in (left, right):
            builder.specify(value, "gates a residual branch")
    nodes = (builder.node_of(left), builder.node_of(right))
    if nodes[0] == nodes[1]:
        return Data((nodes[0],))
    if name in _PRODUCTS:
        return Data((builder.gate(nodes),))
    return Data((builder.merge("sum", nodes),))
