"""A parameter meets the data elementwise: scales and biases of norms, biases, gates, positions.

A scale without norm (layer scale) is taken for that of a layer norm, as by Knyazev et al. A single
number for all channels is none, and neither is a gate that starts closed.
"""

import dataclasses
import math
from collections.abc import Sequence

from ghn_jax.tracing.builder import ONE_FOR_ALL, GraphBuilder
from ghn_jax.tracing.functions import Function, find_obstacle
from ghn_jax.tracing.registry import keep_weights
from ghn_jax.tracing.rules.compounds import is_vector
from ghn_jax.tracing.rules.shifted import mark_tap
from ghn_jax.tracing.rules.tokens import add_position, as_data
from ghn_jax.tracing.values import Data, Weight

_SUMS = ("add", "sub", "add_any")


def apply_parameter(
    builder: GraphBuilder,
    name: str,
    data: Data,
    weight: Weight,
    shape: Sequence[int],
    is_difference: bool = False,
) -> Data | Weight:
    """Return data combined with a parameter.

    Args:
        builder: Builds the graph.
        name: The primitive.
        data: The data.
        weight: The parameter, left of the primitive; one on its right is negated or inverted first.
        shape: Shape of the result.
        is_difference: Whether the data are subtracted from the parameter.

    Returns:
        The data; or the parameter where the data are only a moment that divides it.
    """
    if weight.squared and name in _SUMS:
        return builder.add_squares(data, weight.squared)
    statistic = data.statistic
    is_norm = statistic is not None and statistic.normalizes(name)
    is_distance = data.within == "distance" and builder.is_difference(data)
    if name == "mul" and is_distance and not is_norm:
        keep_weights(builder, [weight], "only scales a distance")
        return data
    if name == "add" and statistic is not None and data.within and _is_scalar(weight):
        keep_weights(builder, [weight], "is added to a mean of squares, as the epsilon of a norm")
        return data
    if statistic is not None:
        if weight.norm and data.nodes == weight.norm_nodes:  # mean * scale / std
            return weight
        if statistic.is_deviation and name in ("mul", "div"):  # scale / std
            weight = _with_gain(weight, statistic.gain_of(name))
            return dataclasses.replace(weight, norm=statistic.norm, norm_nodes=data.nodes)
        if statistic.norm == "bn":
            return weight
        data = Data((builder.node_of(data),))
    if weight.joined and name in ("mul", "div", "add", "sub", "add_any") and not data.is_product:
        return _apply_joined(builder, name, data, weight.joined, shape)
    if len(weight.views) == 0:
        keep_weights(builder, [weight], "is computed from parameters before it meets the data")
        return data
    if data.is_product and not (data.norm or data.open_norm or weight.norm):
        # Logits if it becomes attention, else the product is a node like any other.
        node = builder.node_of(data)
        logits = builder.logits(data) | weight.parameters
        settled = apply_parameter(builder, name, Data((node,)), weight, shape, is_difference)
        assert isinstance(settled, Data)
        builder.settle(data.nodes, builder.node_of(settled), logits)
        return Data(data.nodes, is_product=True)
    if name in ("mul", "div"):
        return mark_tap(_scale(builder, data, weight, shape), data, weight)
    if name in _SUMS:
        for view in weight.views:
            data = _shift(builder, data, view, is_difference)
        return data
    keep_weights(builder, [weight], f"meets the data in {name}, which has no rule for parameters")
    return data


def _apply_joined(builder, name, data, joined, shape):
    """Scale or shift parts of the channels, or shift by positions put one behind the other."""
    node = builder.node_of(data)
    if name in _SUMS and not all(map(is_vector, joined.weights)):
        positions = [builder.node_of(as_data(builder, part)) for part in joined.weights]
        return Data((builder.merge("sum", (node, builder.merge("concat", positions))),))
    sources = builder.find_parts(node, joined.sizes)
    parts = [
        apply_parameter(builder, name, dataclasses.replace(data, nodes=(source,)), part, shape)
        for source, part in zip(sources, joined.weights, strict=True)
    ]
    return Data((builder.merge("concat", map(builder.node_of, parts)),))


def _is_scalar(weight):
    return len(weight.views) == 1 and weight.views[0].size == 1


def _with_gain(weight, gain):
    """Let a parameter stand for the scale of data of unit variance, whatever the norm gives."""
    is_unit = math.isclose(abs(gain), 1, rel_tol=0.05)  # of n - 1 instead of n elements, too
    return weight if is_unit else weight.through(Function("mul", gain))


def _scale(builder, data, weight, shape):
    if len(weight.views) > 1:
        keep_weights(builder, [weight], "is added to another parameter before it scales the data")
        return data
    norm = data.norm or weight.norm
    (view,) = _with_gain(weight, data.norm_gain).views
    has_one_channel = any(size == 1 for size in shape)
    if _is_scalar(weight) and not (norm and has_one_channel):
        keep_weights(builder, [weight], ONE_FOR_ALL)
        nodes = (builder.node_of(data),) if len(data.taps) > 1 else data.nodes
        gates = data.gates | weight.parameters
        return dataclasses.replace(
            data, nodes=nodes, taps=frozenset(), taps_kind=None, norm=norm, gates=gates
        )
    obstacle = find_obstacle(view.functions, "scale")
    if obstacle is None and builder.is_closed(view):
        obstacle = "gates what it scales, and starts at zero"
    if obstacle and not norm:  # a gate, not a norm whose scale is not predicted
        keep_weights(builder, [weight], obstacle)
        return data
    source = builder.node_of(data)
    node = builder.node(norm or "ln", (source,), (view.size, 1, 1, 1))
    builder.claim(view.reshape((view.size,)), node, "scale")
    if not norm:
        builder.affine.add(node, "scale", source, weight.parameters)
    return Data((node,), open_norm=node if norm else None)


def _shift(builder, data, view, is_difference=False):
    vector = view.reshape((view.size,))
    if data.open_norm is not None:
        builder.claim(vector, data.open_norm, "bias")
        return Data(data.nodes)
    node = builder.node_of(data)
    if data.norm:
        node = builder.node(data.norm, (node,), (view.size, 1, 1, 1))
        builder.claim(vector, node, "bias")
        return Data((node,))
    source, channels = node, builder.nodes[node].shape[0]
    is_vector = sum(size > 1 for size in view.shape) <= 1
    if is_vector or view.size == channels:
        node = builder.node("bias", (node,), (view.size, 1, 1, 1))
        builder.claim(vector, node, "bias")
    else:
        position = add_position(builder, view, channels or None)
        node = builder.merge("sum", (node, position))
    is_difference = is_difference or Function("mul", -1.0) in view.functions
    kind = "difference" if is_difference else "shift"
    builder.affine.add(node, kind, source, frozenset({view.parameter}))
    return Data((node,))
