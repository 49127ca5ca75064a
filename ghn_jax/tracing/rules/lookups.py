"""Lookups: an index that the network computes from its data chooses rows, kernels or tokens.

A row chosen from a table is a linear layer of one-hot vectors. A kernel chosen from a stack, as a
router chooses experts, is one group of a grouped convolution: the parameter is followed as the
slice that was chosen, and meets the data as the whole stack.
"""

import dataclasses
import math
from typing import Any

from ghn_jax.tracing.registry import derived, keep_weights, register_rule, unknown
from ghn_jax.tracing.rules.layout import slice_weight
from ghn_jax.tracing.rules.tokens import choose
from ghn_jax.tracing.values import Constant, Data, Weight

_NO_ROWS = "is looked up in a way that is no embedding of rows"


@register_rule("gather")
def _gather(builder, eqn, inputs):
    value, indices = inputs[:2]
    if isinstance(value, Data):
        return choose(builder, value, indices) if isinstance(indices, Data) else value
    if isinstance(value, Constant):
        return unknown(builder, eqn, inputs)
    if isinstance(indices, Weight):
        keep_weights(builder, [indices], "is an index")
    shape, slices = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    numbers = eqn.params["dimension_numbers"]
    view = value.views[0] if len(value.views) == 1 and not value.chosen_by else None
    rows = _looked_up_axes(shape, slices, numbers)
    if view is None or view.shape != shape or rows is None:
        return _lose(builder, value, indices)
    out_shape = eqn.outvars[0].aval.shape
    rest = [axis for axis in range(len(shape)) if axis not in rows]
    view = view.transpose((*rows, *rest))
    view = view.reshape((math.prod(shape[axis] for axis in rows), *view.shape[len(rows) :]))
    offsets = [axis for axis in range(len(shape)) if axis not in numbers.collapsed_slice_dims]
    batch = [size for axis, size in enumerate(out_shape) if axis not in numbers.offset_dims]
    if isinstance(indices, Data):
        compact = [1] * len(out_shape)
        for axis, place in zip(offsets, numbers.offset_dims, strict=True):
            compact[place] = 1 if axis in rows else shape[axis]
        if sum(size > 1 for size in compact) <= 1:
            return builder.embed(view, indices.nodes)
        chosen = view.choose(tuple(compact))
        return Weight(value.parameters, (chosen,), chosen_by=(builder.node_of(indices),))
    # Looked up at fixed indices, as by a range of positions: row after row.
    if len(rows) == 1 and len(batch) == 1 and batch[0] <= shape[rows[0]]:
        view = view.slice((slice(0, batch[0]), *(slice(0, shape[axis]) for axis in rest)))
        if numbers.offset_dims == tuple(range(1, len(out_shape))):
            return dataclasses.replace(value, views=(view.reshape(out_shape),))
    return derived(value)


@register_rule("dynamic_slice")
def _dynamic_slice(builder, eqn, inputs):
    value, indices = inputs[0], inputs[1:]
    data = [index for index in indices if isinstance(index, Data)]
    if isinstance(value, Data):
        for index in data:
            value = choose(builder, value, index)
        return value
    if isinstance(value, Constant):
        return unknown(builder, eqn, inputs)
    starts: list[Any] = [getattr(var, "val", None) for var in eqn.invars[1:]]
    if any(start is None for start in starts):
        keep_weights(builder, [value], "is sliced at an index that the network computes")
        return Data((builder.merge("sum", map(builder.node_of, data)),)) if data else derived(value)
    sizes = eqn.params["slice_sizes"]
    parts = tuple(
        slice(int(start), int(start) + size) for start, size in zip(starts, sizes, strict=True)
    )
    return slice_weight(value, eqn.invars[0].aval.shape, parts)


def _looked_up_axes(shape, slices, numbers):
    """Return the axes of which an index takes one entry, None for any other lookup."""
    if numbers.operand_batching_dims:
        return None
    partial = [axis for axis, size in enumerate(shape) if slices[axis] < size]
    rows = sorted({*partial, *numbers.collapsed_slice_dims})
    return rows if rows and all(slices[axis] == 1 for axis in rows) else None


def _lose(builder, value, indices):
    keep_weights(builder, [value], _NO_ROWS)
    if isinstance(indices, Data):
        return Data((builder.node_of(indices),))
    return derived(value)
