"""Convolutions and dot products: the nodes that hold kernels, and attention."""

import dataclasses
import math

from ghn_jax.tracing.functions import Function
from ghn_jax.tracing.registry import derived, keep_weights, register_rule
from ghn_jax.tracing.rules.compounds import can_join, is_compound, split_terms, with_size
from ghn_jax.tracing.rules.parameters import sum_squares
from ghn_jax.tracing.rules.products import as_weight, multiply, split_at
from ghn_jax.tracing.rules.tokens import as_data, choose
from ghn_jax.tracing.values import Constant, Data, Weight


@register_rule("conv_general_dilated")
def _convolve(builder, eqn, inputs):
    x, kernel = inputs
    if isinstance(x, Weight) and builder.has_batch(eqn.invars[0].aval.shape) and x.views:
        x = as_data(builder, x)
    if not isinstance(x, Data):
        return _without_data(builder, eqn, inputs)
    if isinstance(kernel, Constant):
        return Data((builder.node_of(x),))
    if isinstance(kernel, Data):  # a filter computed from the images gates them
        return Data((builder.gate((builder.node_of(x), builder.node_of(kernel))),))
    terms = split_terms(kernel) if is_compound(kernel) else [kernel]
    nodes = [_convolve_term(builder, x, term, eqn) for term in terms]
    return Data((builder.merge("sum", nodes),))


def _convolve_term(builder, x, kernel, eqn):
    out_axis, in_axis, *spatial = eqn.params["dimension_numbers"].rhs_spec
    groups = max(eqn.params["feature_group_count"], eqn.params["batch_group_count"])
    if kernel.products and groups == 1:
        parts = split_at(kernel.products[0], (*spatial, in_axis))
        if parts is not None:
            first, second, places = parts
            view = first.transpose((*places, len(places)))
            x = Data((_add_convolution(builder, x, view, groups, eqn),))
            return builder.node_of(_apply_kernel(builder, x, as_weight(second), second.shape, (0,)))
    if len(kernel.views) != 1 or kernel.views[0].shape != eqn.invars[1].aval.shape:
        keep_weights(builder, [kernel], _NO_VIEW)
        return builder.node_of(x)
    view = kernel.views[0].transpose((*spatial, in_axis, out_axis))
    return _add_convolution(builder, x, view, groups, eqn)


def _add_convolution(builder, x, view, groups, eqn):
    """Add the node of a kernel (*window, I, O), and return its index."""
    *sizes, num_in, num_out = view.shape
    if len(sizes) == 3:  # a GHN knows two spatial axes: the depth joins the input channels
        view = view.transpose((1, 2, 0, 3, 4))
        sizes, num_in = sizes[1:], sizes[0] * num_in
    sizes = (*sizes, 1, 1)[:2]
    view = view.reshape((*sizes, num_in, num_out))
    primitive = "conv"
    if groups > 1:
        primitive = "dil_conv" if max(eqn.params["rhs_dilation"]) > 1 else "sep_conv"
    node = builder.node(primitive, (builder.node_of(x),), (num_out, num_in, *sizes))
    builder.claim(view, node, "depthwise" if groups > 1 and num_in == 1 else "kernel")
    return node


@register_rule("dot_general")
def _multiply(builder, eqn, inputs):
    left, right = inputs
    shapes = [var.aval.shape for var in eqn.invars]
    # A parameter that repeats along the batch is not a kernel but a token.
    if isinstance(left, Weight) and isinstance(right, Weight):
        left, right = builder.look_up(left), builder.look_up(right)
    if isinstance(left, Weight) and isinstance(right, Weight):
        if left.views and builder.has_batch(shapes[0]):
            left = as_data(builder, left)
        elif right.views and builder.has_batch(shapes[1]):
            right = as_data(builder, right)
    if isinstance(left, Data) and isinstance(right, Data):
        return _multiply_data(builder, left, right)
    (contract_left, contract_right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
    if isinstance(left, Data) and isinstance(right, Weight):
        return _apply_kernel(builder, left, right, shapes[1], contract_right, batch_right)
    if isinstance(right, Data) and isinstance(left, Weight):
        return _apply_kernel(builder, right, left, shapes[0], contract_left, batch_left)
    return _without_data(builder, eqn, inputs)


_NO_VIEW = "is no rearrangement of one parameter when it meets the data"


def _apply_kernel(builder, x, kernel, shape, contracted, batch=()):
    if kernel.chosen_by:
        return _apply_chosen(builder, x, kernel, contracted, batch)
    if kernel.joined:
        return _apply_joined(builder, x, kernel.joined, shape, contracted, batch)
    if is_compound(kernel):
        terms = [
            _apply_term(builder, x, term, shape, contracted, batch) for term in split_terms(kernel)
        ]
        return Data((builder.merge("sum", map(builder.node_of, terms)),))
    free = [axis for axis in range(len(shape)) if axis not in (*contracted, *batch)]
    view = kernel.views[0] if len(kernel.views) == 1 else None
    if view is None or any(view.shape[axis] != shape[axis] for axis in (*contracted, *free)):
        keep_weights(builder, [kernel], _NO_VIEW)
        return Data((builder.node_of(x),))
    num_in = math.prod(shape[axis] for axis in contracted)
    num_groups = math.prod(view.shape[axis] for axis in batch)
    num_out = num_groups * math.prod(shape[axis] for axis in free)
    is_convolution = len(view.shape) == 2 and _is_pixel_kernel(view, (num_in, num_out))
    view = view.transpose((*contracted, *batch, *free)).reshape((num_in, num_out))
    if is_convolution:
        view = view.reshape((1, 1, num_in, num_out))
    primitive = "sep_conv" if num_groups > 1 else "conv"
    node = builder.node(primitive, (builder.node_of(x),), (num_out, num_in, 1, 1))
    builder.claim(view, node, "kernel")
    return Data((node,))


def _apply_joined(builder, x, joined, shape, contracted, batch):
    outputs = [
        _apply_kernel(builder, x, part, with_size(shape, joined.axis, size), contracted, batch)
        for part, size in zip(joined.weights, joined.sizes, strict=True)
    ]
    primitive = "sum" if joined.axis in contracted else "concat"
    return Data((builder.merge(primitive, map(builder.node_of, outputs)),))


def _apply_term(builder, x, term, shape, contracted, batch):
    if not term.products:
        return _apply_kernel(builder, x, term, shape, contracted, batch)
    parts = None if batch else split_at(term.products[0], contracted)
    if parts is None:
        keep_weights(builder, [term], _NO_VIEW)
        return Data((builder.node_of(x),))
    first, second, places = parts
    x = _apply_kernel(builder, x, as_weight(first), first.shape, tuple(places))
    return _apply_kernel(builder, x, as_weight(second), second.shape, (0,))


def _apply_chosen(builder, x, stack, contracted, batch):
    """Apply one kernel of a stack, as an expert: a group of a grouped convolution."""
    view = stack.views[0].lift()  # (experts, axes of one kernel), 1 where it repeats
    inner = [axis + 1 for axis in contracted]
    outer = [axis for axis in range(len(view.shape)) if axis not in inner]
    num_in = math.prod(view.shape[axis] for axis in inner)
    view = view.transpose((*inner, *outer)).reshape((num_in, view.size // num_in))
    node = builder.node("sep_conv", (builder.node_of(x),), (view.shape[1], num_in, 1, 1))
    builder.claim(view, node, "kernel")
    return choose(builder, Data((node,)), Data(stack.chosen_by))


def _is_pixel_kernel(view, shape):
    """Return whether the view is a (1, 1, I, O) kernel without its first axes."""
    return view.steps[:1] == (("reshape", (1, 1, *shape), shape),) and len(view.steps) == 1


def _multiply_data(builder, left, right):
    if left.is_mask or right.is_mask:
        return _multiply_mask(builder, left, right)
    if left == right and builder.is_difference(left):
        return Data(left.nodes, within="distance")
    nodes: list[int] = []
    for value in (left, right):
        pending = value.is_product or value.is_softmax
        nodes += value.nodes if pending else [builder.node_of(value)]
    nodes = list(dict.fromkeys(nodes))
    if any(value.is_product or value.is_softmax for value in (left, right)):
        logits = frozenset().union(*map(builder.logits, (left, right)))
        builder.keep(logits, "acts on attention logits, which are no node")
        return Data((builder.node("msa", nodes),))
    return Data(tuple(nodes), is_product=True)


def _multiply_mask(builder, left, right):
    """Return data that a mask, such as a one-hot index, moves and adds up."""
    mask, data = (left, right) if left.is_mask else (right, left)
    if data.is_mask:
        return Data((builder.merge("sum", map(builder.node_of, (left, right))),), is_mask=True)
    if not data.is_product:
        data = Data((builder.node_of(data),))
    return choose(builder, Data(data.nodes, is_product=data.is_product), mask)


def _without_data(builder, eqn, inputs):
    weights = [value for value in inputs if isinstance(value, Weight)]
    data = [value for value in inputs if isinstance(value, Data)]
    if data:
        (value,) = data
        return (
            Data(value.nodes, is_product=True)
            if value.is_product
            else Data((builder.node_of(value),))
        )
    if weights:
        if len(weights) == 2 and _is_square(eqn, *weights):
            return sum_squares(weights[0].through(Function("pow", 2.0)))
        if len(weights) == 2:
            keep_weights(builder, weights, "is multiplied with another parameter before use")
            product = _multiply_weights(eqn, *weights)
            if product is not None:
                return product
        return Weight(frozenset().union(*(weight.parameters for weight in weights)))
    return Constant(any(value.is_state for value in inputs))


def _is_square(eqn, left, right):
    """Return whether the rows of a matrix are multiplied with themselves."""
    _, (batch_left, batch_right) = eqn.params.get("dimension_numbers", ((), ((), ())))
    return bool(left.views == right.views and batch_left and batch_left == batch_right)


def _multiply_weights(eqn, left, right):
    if eqn.primitive.name != "dot_general":
        return None
    (contract_left, contract_right), (batch, _) = eqn.params["dimension_numbers"]
    if batch or len(contract_left) != 1 or not (can_join(left) and can_join(right)):
        return None
    (left_view,), (right_view,) = left.views, right.views
    if [left_view.shape, right_view.shape] != [var.aval.shape for var in eqn.invars]:
        return None  # one of them repeats
    product = multiply(left_view, right_view, contract_left[0], contract_right[0])
    return dataclasses.replace(derived(left, right), products=(product,))
