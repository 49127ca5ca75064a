"""Primitives that move elements: data keep their node, parameters are followed."""

import dataclasses
from typing import Any

from ghn_jax.tracing.registry import derived, keep_weights, register_rule, unknown
from ghn_jax.tracing.rules.tokens import as_data, choose
from ghn_jax.tracing.values import Constant, Data, Weight
from ghn_jax.tracing.views import align_reshape


def _follow(weight: Weight, views) -> Weight:
    views = tuple(views)
    if any(view is None for view in views):
        return derived(weight)
    return dataclasses.replace(weight, views=views)


@register_rule(
    *("convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "name"),
    *("device_put", "sharding_constraint", "real", "optimization_barrier", "pvary"),
)
def _same(builder, eqn, inputs):
    return list(inputs)[: len(eqn.outvars)]


@register_rule("reshape", "squeeze", "expand_dims")
def _reshape(builder, eqn, inputs):
    value = inputs[0]
    if not isinstance(value, Weight):
        return value
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape

    def reshape(view):
        compact = align_reshape(view.shape, old, new)
        return None if compact is None else view.reshape(compact)

    return _follow(value, map(reshape, value.views))


@register_rule("transpose")
def _transpose(builder, eqn, inputs):
    (value,) = inputs
    if not isinstance(value, Weight):
        return value
    axes = tuple(int(axis) for axis in eqn.params["permutation"])
    return _follow(value, (view.transpose(axes) for view in value.views))


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

    return _follow(value, map(broadcast, value.views))


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


def _slice_weight(weight, shape, index):
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
        return _slice_weight(value, shape, tuple(map(slice, starts, limits, strides)))
    if isinstance(value, Data) and value.statistic is None and len(value.taps) <= 1:
        tap = (starts, strides, eqn.outvars[0].aval.shape)
        taps = frozenset() if value.is_mask else frozenset({tap})
        part = (*value.part, tuple(map(range, starts, limits, strides)))
        return Data(
            value.nodes, is_product=value.is_product, taps=taps, is_mask=value.is_mask, part=part
        )
    return value


@register_rule("split")
def _split(builder, eqn, inputs):
    (value,) = inputs
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    shape, start, parts = eqn.invars[0].aval.shape, 0, []
    for size in sizes:
        index = [range(full) for full in shape]
        index[axis] = range(start, start + size)
        start += size
        if isinstance(value, Weight):
            slices = tuple(slice(part.start, part.stop) for part in index)
            parts.append(_slice_weight(value, shape, slices))
        elif isinstance(value, Data):
            parts.append(dataclasses.replace(value, part=(*value.part, tuple(index))))
        else:
            parts.append(value)
    return parts


@register_rule("dynamic_slice")
def _dynamic_slice(builder, eqn, inputs):
    value = inputs[0]
    if isinstance(value, Weight):
        starts: list[Any] = [getattr(var, "val", None) for var in eqn.invars[1:]]
        if any(start is None for start in starts):
            reason = "is sliced at an index that the network computes"
            keep_weights(builder, [value], reason)
            return derived(value)
        sizes = eqn.params["slice_sizes"]
        index = tuple(
            slice(int(start), int(start) + size) for start, size in zip(starts, sizes, strict=True)
        )
        return _slice_weight(value, eqn.invars[0].aval.shape, index)
    return value if isinstance(value, Data) else unknown(builder, eqn, inputs)


@register_rule("pad")
def _pad(builder, eqn, inputs):
    value = inputs[0]
    if isinstance(value, Weight) and eqn.invars[0].aval.shape != eqn.outvars[0].aval.shape:
        return derived(value)
    return value


@register_rule("gather")
def _gather(builder, eqn, inputs):
    value, indices = inputs[:2]
    if not isinstance(value, Weight):
        return value if isinstance(value, Data) else unknown(builder, eqn, inputs)
    rows = eqn.params["dimension_numbers"].collapsed_slice_dims == (0,)
    views = [view for view in value.views if rows and len(view.shape) == 2]
    if not views:
        reason = "is looked up in a way that is no embedding of rows"
        keep_weights(builder, [value], reason)
        return derived(value)
    (view,) = views
    count, features = view.shape
    if isinstance(indices, Data):  # an embedding is a linear layer of one-hot vectors
        node = builder.node("conv", (builder.node_of(indices),), (features, count, 1, 1))
        builder.claim(view, node, "kernel")
        return Data((node,))
    # Looked up at fixed indices, as by a range of positions: row after row.
    out_shape = eqn.outvars[0].aval.shape
    if len(out_shape) == 2 and out_shape[0] <= count and out_shape[1] == features:
        return _follow(value, [view.slice((slice(0, out_shape[0]), slice(0, features)))])
    return derived(value)


@register_rule("concatenate", "stack")
def _concatenate(builder, eqn, inputs):
    weights = [value for value in inputs if isinstance(value, Weight)]
    data = [value for value in inputs if isinstance(value, Data)]
    if not data and not (weights and builder.has_batch(eqn.outvars[0].aval.shape)):
        if len(weights) == 1 and len(inputs) == 1:
            return weights[0]
        keep_weights(builder, weights, "is concatenated with others before use")
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
    return Data((builder.merge("concat", nodes),), is_product=any(x.is_product for x in data))


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
