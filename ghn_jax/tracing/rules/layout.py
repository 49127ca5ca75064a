"""Primitives that move elements: data keep their node, parameters are followed."""

import dataclasses
from collections.abc import Sequence

from ghn_jax.tracing.registry import derived, keep_weights, register_rule, unknown
from ghn_jax.tracing.rules import products
from ghn_jax.tracing.rules.compounds import (
    can_join,
    find_part,
    join,
    move_axis,
    with_size,
)
from ghn_jax.tracing.rules.shifted import shift
from ghn_jax.tracing.rules.tokens import as_data
from ghn_jax.tracing.values import Constant, Data, Value, Weight
from ghn_jax.tracing.views import Index, align_reshape


def _follow(weight: Weight, views, products=()) -> Weight:
    views, products = tuple(views), tuple(products)
    is_lost = None in views or None in products or len(products) < len(weight.products)
    if is_lost or weight.joined:
        return derived(weight)
    return dataclasses.replace(weight, views=views, products=products)


@register_rule(
    *("convert_element_type", "copy", "copy_p", "reduce_precision", "name"),
    *("device_put", "sharding_constraint", "real", "optimization_barrier", "pvary"),
)
def _same(builder, eqn, inputs):
    return list(inputs)[: len(eqn.outvars)]


@register_rule("stop_gradient")
def _stop(builder, eqn, inputs):
    (value,) = inputs
    return dataclasses.replace(value, is_stopped=True) if isinstance(value, Weight) else value


@register_rule("reshape", "squeeze", "expand_dims")
def _reshape(builder, eqn, inputs):
    value = inputs[0]
    if not isinstance(value, Weight):
        return value
    return _reshape_weight(value, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape)


def _reshape_weight(weight, old, new):
    if old == new:
        return weight
    joined = weight.joined
    axis = joined and move_axis(old, new, joined.axis)
    if axis is not None:

        def follow(part, size):
            shapes = with_size(old, joined.axis, size), with_size(new, axis, size)
            return _reshape_weight(part, *shapes)

        return _follow_parts(weight, axis, follow)

    def reshape(view):
        compact = align_reshape(view.shape, old, new)
        return None if compact is None else view.reshape(compact)

    reshaped = (products.reshape(product, old, new) for product in weight.products)
    return _follow(weight, map(reshape, weight.views), reshaped)


def _follow_parts(weight, axis, follow):
    joined = weight.joined
    parts = [follow(part, size) for part, size in zip(joined.weights, joined.sizes, strict=True)]
    return join(parts, joined.sizes, axis) if all(map(can_join, parts)) else derived(weight)


@register_rule("transpose")
def _transpose(builder, eqn, inputs):
    (value,) = inputs
    if isinstance(value, Data):
        return dataclasses.replace(value, shift=())
    if not isinstance(value, Weight):
        return value
    axes = tuple(int(axis) for axis in eqn.params["permutation"])

    def transpose(weight):
        transposed = (products.transpose(product, axes) for product in weight.products)
        return _follow(weight, (view.transpose(axes) for view in weight.views), transposed)

    if value.joined:
        axis = axes.index(value.joined.axis)
        return _follow_parts(value, axis, lambda part, size: transpose(part))
    return transpose(value)


@register_rule("broadcast_in_dim")
def _broadcast(builder, eqn, inputs):
    value = inputs[0]
    if not isinstance(value, Weight):
        return value
    rank = len(eqn.outvars[0].aval.shape)

    def broadcast(view):
        shape = [1] * rank
        for size, axis in zip(view.shape, eqn.params["broadcast_dimensions"], strict=True):
            shape[axis] = size
        return view.reshape(tuple(shape))

    if value.joined:
        axis = int(eqn.params["broadcast_dimensions"][value.joined.axis])
        return _follow_parts(
            value, axis, lambda part, size: _follow(part, map(broadcast, part.views))
        )
    old, new, compact = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, [1] * rank
    for size, axis in zip(old, eqn.params["broadcast_dimensions"], strict=True):
        compact[axis] = size
    is_same = tuple(compact) == new  # nothing repeats
    widened = (products.reshape(x, old, new) if is_same else None for x in value.products)
    return _follow(value, map(broadcast, value.views), widened)


@register_rule("tile")
def _tile(builder, eqn, inputs):
    (value,) = inputs
    if not isinstance(value, Weight):
        return value
    repeats = eqn.params["reps"]
    repeated = any(
        size > 1 and count > 1
        for view in value.views
        for size, count in zip(view.shape, repeats, strict=True)
    )
    return derived(value) if repeated else value


@register_rule("rev")
def _reverse(builder, eqn, inputs):
    (value,) = inputs
    if not isinstance(value, Weight):
        return value
    return _follow(value, (view.reverse(tuple(eqn.params["dimensions"])) for view in value.views))


def slice_weight(weight: Weight, shape: Sequence[int], index: Index) -> Weight:
    """Return a part of a weight, given its shape and a slice for each axis."""

    if weight.joined:
        axis, whole = weight.joined.axis, [slice(0, size, 1) for size in shape]
        start, stop, _ = index[axis].indices(shape[axis])
        others = [slice(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        others[axis] = whole[axis]
        part = find_part(weight.joined, start, stop)
        return part if part and others == whole else derived(weight)

    def cut(view):
        repeated = [size == 1 and full > 1 for size, full in zip(view.shape, shape, strict=True)]
        return view.slice(
            tuple(slice(0, 1) if r else i for r, i in zip(repeated, index, strict=True))
        )

    return _follow(weight, map(cut, weight.views))


@register_rule("slice")
def _slice(builder, eqn, inputs):
    (value,) = inputs
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    shape = eqn.invars[0].aval.shape
    if isinstance(value, Weight):
        return slice_weight(value, shape, tuple(map(slice, starts, limits, strides)))
    if isinstance(value, Data) and value.statistic is None and len(value.taps) <= 1:
        tap = (starts, strides, eqn.outvars[0].aval.shape)
        taps = frozenset() if value.is_mask else frozenset({tap})
        part = (*value.part, tuple(map(range, starts, limits, strides)))
        return Data(
            value.nodes,
            is_product=value.is_product,
            taps=taps,
            within=value.within,
            is_mask=value.is_mask,
            part=part,
            shift=shift(value, len(shape), starts),
        )
    return value


@register_rule("split")
def _split(builder, eqn, inputs):
    (value,) = inputs
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    shape, start = eqn.invars[0].aval.shape, 0
    parts: list[Value] = []
    for size in sizes:
        index = [range(full) for full in shape]
        index[axis] = range(start, start + size)
        start += size
        if isinstance(value, Weight):
            slices = tuple(slice(part.start, part.stop) for part in index)
            parts.append(slice_weight(value, shape, slices))
        elif isinstance(value, Data):
            parts.append(dataclasses.replace(value, part=(*value.part, tuple(index))))
        else:
            parts.append(value)
    return parts


@register_rule("pad")
def _pad(builder, eqn, inputs):
    value = inputs[0]
    if not isinstance(inputs[1], Constant):
        return unknown(builder, eqn, inputs)
    if isinstance(value, Weight) and eqn.invars[0].aval.shape != eqn.outvars[0].aval.shape:
        return derived(value)
    if isinstance(value, Data) and value.statistic is None:
        lows = [-low for low, _, _ in eqn.params["padding_config"]]
        return dataclasses.replace(value, shift=shift(value, len(lows), lows))
    return dataclasses.replace(value, value=None) if isinstance(value, Constant) else value


@register_rule("concatenate")
def _concatenate(builder, eqn, inputs):
    weights = [value for value in inputs if isinstance(value, Weight)]
    data = [value for value in inputs if isinstance(value, Data)]
    if not data and not (weights and builder.has_batch(eqn.outvars[0].aval.shape)):
        if len(weights) == 1 and len(inputs) == 1:
            return weights[0]
        keep_weights(builder, weights, "is concatenated with others before use")
        if len(weights) == len(inputs) and all(map(can_join, weights)):
            axis = eqn.params["dimension"]
            return join(weights, [var.aval.shape[axis] for var in eqn.invars], axis)
        return unknown(builder, eqn, inputs)
    if len(data) == len(inputs) and all(value == data[0] for value in data):
        return data[0]
    nodes = []
    for value in inputs:
        if isinstance(value, Weight) and not value.views:
            keep_weights(builder, [value], "is computed from parameters before it meets the data")
        elif isinstance(value, Weight):
            value = as_data(builder, value)
        if isinstance(value, Data):
            nodes.append(builder.node_of(value))
    node = builder.merge("concat", nodes)
    is_product = any(x.is_product for x in data)
    if len(data) == 1 and data[0].nodes == (node,):  # zeros before or behind shift it
        rank, axis = len(eqn.outvars[0].aval.shape), eqn.params["dimension"]
        before = eqn.invars[: list(inputs).index(data[0])]
        starts = [0] * rank
        starts[axis] = -sum(var.aval.shape[axis] for var in before)
        return Data((node,), is_product=is_product, shift=shift(data[0], rank, starts))
    return Data((node,), is_product=is_product)


@register_rule("dynamic_update_slice", "scatter", "scatter-add", "select_and_scatter_add")
def _update(builder, eqn, inputs):
    nodes = [builder.node_of(value) for value in inputs if isinstance(value, Data)]
    weights = [value for value in inputs if isinstance(value, Weight)]
    if nodes and weights:
        keep_weights(builder, weights, f"is written into data by {eqn.primitive.name}")
    if not nodes:
        return unknown(builder, eqn, inputs)
    return Data((builder.merge("concat", nodes),))


@register_rule("iota", "random_bits", "random_seed", "random_wrap", "random_unwrap")
def _constant(builder, eqn, inputs):
    return [Constant()] * len(eqn.outvars)
