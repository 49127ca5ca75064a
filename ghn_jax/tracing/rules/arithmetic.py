"""Elementwise primitives: biases, norms, gates, residual sums, and activations, which are no nodes.

A norm arrives in many spellings: (x - mean) * rsqrt(var + eps) * scale + bias,
x * (scale * rsqrt(var)) + (bias - mean * scale * rsqrt(var)), with moments of the batch, of the
features or running ones. All have in common that something of the node, or of running statistics,
with a square root in it multiplies the data, a parameter scales and another shifts them.
"""

import dataclasses
from collections.abc import Sequence

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.registry import derived, keep_weights, register_rule, unknown
from ghn_jax.tracing.rules.compounds import add, is_compound, is_vector
from ghn_jax.tracing.rules.shifted import add_taps, mark_tap
from ghn_jax.tracing.rules.tokens import add_position, as_data, choose, join_product
from ghn_jax.tracing.values import Constant, Data, Value, Weight

_PRODUCTS = ("mul", "div")
_SUMS = ("add", "sub", "add_any")
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
        )
    if isinstance(left, Weight) and isinstance(right, Weight):
        return _combine_weights(builder, name, left, right, shapes)
    if isinstance(left, Constant) or isinstance(right, Constant):
        constant, value = (left, right) if isinstance(left, Constant) else (right, left)
        constant_shape = shapes[0] if isinstance(left, Constant) else shapes[1]
        if isinstance(value, Weight):
            if name in _PRODUCTS and constant.is_state and constant.is_deviation:
                return dataclasses.replace(value, norm="bn")
            is_linear = name in (*_PRODUCTS, *_SUMS)
            return derived(value) if is_compound(value) and not is_linear else value
        return _with_constant(builder, name, value, constant, constant_shape)
    if isinstance(left, Data) and isinstance(right, Data):
        return _combine_data(builder, name, left, right)
    data, weight = (left, right) if isinstance(left, Data) else (right, left)
    return _apply_weight(builder, name, data, weight)


_UNARY = (
    "rsqrt sqrt cbrt exp exp2 log log1p expm1 tanh logistic erf erfc erf_inv neg abs sign floor"
    " ceil round sin cos tan square integer_pow not is_finite clamp cumsum cumlogsumexp cummax"
    " cumprod"
).split()


@register_rule(*_UNARY)
def _unary(builder, eqn, inputs):
    name = eqn.primitive.name
    if name == "clamp" and not all(isinstance(bound, Constant) for bound in inputs[::2]):
        return unknown(builder, eqn, inputs)
    value = inputs[1] if name == "clamp" else inputs[0]
    takes_root = name in _DEVIATIONS or (name == "integer_pow" and eqn.params["y"] < 0)
    if isinstance(value, Constant):
        return Constant(value.is_state, value.is_deviation or takes_root)
    if isinstance(value, Weight):
        return derived(value) if is_compound(value) and name != "neg" else value
    if value.statistic is not None:
        return _mark_deviation(value) if takes_root else value
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
    nodes = []
    for value in (one, other):
        if isinstance(value, Weight) and not value.views:
            keep_weights(builder, [value], "is chosen by a mask")
            continue
        data = as_data(builder, value) if isinstance(value, Weight) else value
        nodes.append(builder.node_of(data))
    return Data((builder.merge("sum", nodes),))


def _mark_deviation(value):
    statistic = dataclasses.replace(value.statistic, is_deviation=True)
    return dataclasses.replace(value, statistic=statistic)


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
    )


def _with_constant(builder, name, value, constant, constant_shape):
    if value.statistic is not None:
        return _mark_deviation(value) if name == "pow" else value
    if name in _PRODUCTS:
        if constant.is_state and constant.is_deviation:
            return dataclasses.replace(value, norm="bn")
        is_table = any(size > 1 for size in constant_shape)
        if is_table and len(value.taps) == 1:  # as in rotary embeddings: no window of a pool
            return dataclasses.replace(value, taps=frozenset())
        return value
    if name in _SUMS:
        return value
    return _activate(builder, value)


def _combine_weights(builder, name, left, right, shapes):
    total = add(left, right) if name in _SUMS else None
    if total is not None:
        return total
    if not left.views and not right.views:
        return derived(left, right)
    if not right.views or not left.views:
        whole, other = (left, right) if left.views else (right, left)
        # Such as the kernel's own moments in weight standardisation.
        keep_weights(builder, [other], "only changes another parameter")
        return dataclasses.replace(whole, parameters=left.parameters | right.parameters)
    if left.views == right.views:
        return left
    batches = [builder.has_batch(shape) for shape in shapes]
    if any(batches) and not (left.norm or right.norm):
        values = [
            as_data(builder, weight) if batch else weight
            for weight, batch in zip((left, right), batches, strict=True)
        ]
        if all(batches):
            return _combine_data(builder, name, *values)
        data, weight = values if batches[0] else values[::-1]
        return _apply_weight(builder, name, data, weight)
    if name in _SUMS:
        if bool(left.norm) != bool(right.norm):  # bias - mean * scale / std: the bias
            return left if right.norm else right
        return Weight(left.parameters | right.parameters, (*left.views, *right.views))
    main, other = sorted((left, right), key=lambda weight: -weight.views[0].size)
    keep_weights(builder, [other], "only scales another parameter")
    return main


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
            return Data(data.nodes, is_softmax=not is_router, is_product=data.is_product)
        return Data(
            data.nodes,
            norm=statistic.statistic.norm,
            is_product=data.is_product,
            is_mask=data.is_mask,
            part=data.part,
        )
    return dataclasses.replace(data, open_norm=None)


def _combine_same(builder, name, left, right):
    kind = {"add": "avg", "max": "max"}.get(name)
    taps = left.taps | right.taps
    if kind and left.taps and right.taps and left.taps != right.taps and _overlap(taps):
        if {left.taps_kind, right.taps_kind} <= {None, kind}:
            return Data(left.nodes, taps=taps, taps_kind=kind)
    if name in _PRODUCTS and _are_apart(left.part, right.part):  # a gated linear unit
        return Data((builder.node("cse", (builder.node_of(left),)),))
    part = left.part if left.part == right.part else ()
    shift = left.shift if left.shift == right.shift else ()
    if left == right:
        return Data(left.nodes, part=part, shift=shift)
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
    nodes = (builder.node_of(left), builder.node_of(right))
    if nodes[0] == nodes[1]:
        return Data((nodes[0],))
    if name in _PRODUCTS:
        return Data((builder.gate(nodes),))
    return Data((builder.merge("sum", nodes),))


def _apply_weight(builder, name, data, weight):
    statistic = data.statistic
    if statistic is not None:
        if weight.norm and data.nodes == weight.norm_nodes:  # mean * scale / std
            return weight
        if statistic.is_deviation and name in _PRODUCTS:  # scale / std
            return dataclasses.replace(weight, norm=statistic.norm, norm_nodes=data.nodes)
        if statistic.norm == "bn":
            return weight
        data = Data((builder.node_of(data),))
    if weight.joined and name in (*_PRODUCTS, *_SUMS) and not data.is_product:
        return _apply_joined(builder, name, data, weight.joined)
    if len(weight.views) == 0:
        keep_weights(builder, [weight], "is computed from parameters before it meets the data")
        return data
    if data.is_product and not (data.norm or data.open_norm or weight.norm):
        # Logits if it becomes attention, else the product is a node like any other.
        node = builder.node_of(data)
        logits = builder.logits(data) | weight.parameters
        settled = builder.node_of(_apply_weight(builder, name, Data((node,)), weight))
        builder.settle(data.nodes, settled, logits)
        return Data(data.nodes, is_product=True)
    if name in _PRODUCTS:
        return mark_tap(_scale(builder, data, weight), data, weight)
    if name in _SUMS:
        for view in weight.views:
            data = _shift(builder, data, view)
        return data
    keep_weights(builder, [weight], f"meets the data in {name}, which has no rule for parameters")
    return data


def _apply_joined(builder, name, data, joined):
    """Scale or shift parts of the channels, or shift by positions put one behind the other."""
    node = builder.node_of(data)
    if name in _SUMS and not all(map(is_vector, joined.weights)):
        positions = [builder.node_of(as_data(builder, part)) for part in joined.weights]
        return Data((builder.merge("sum", (node, builder.merge("concat", positions))),))
    sources = builder.find_parts(node, joined.sizes)
    parts = [
        _apply_weight(builder, name, dataclasses.replace(data, nodes=(source,)), part)
        for source, part in zip(sources, joined.weights, strict=True)
    ]
    return Data((builder.merge("concat", map(builder.node_of, parts)),))


def _scale(builder, data, weight):
    # A scale without norm (layer scale) is taken for that of a layer norm, as by Knyazev et al.
    norm = data.norm or weight.norm
    view = weight.views[0]
    node = builder.node(norm or "ln", (builder.node_of(data),), (view.size, 1, 1, 1))
    builder.claim(view.reshape((view.size,)), node, "scale")
    return Data((node,), open_norm=node if norm else None)


def _shift(builder, data, view):
    vector = view.reshape((view.size,))
    if data.open_norm is not None:
        builder.claim(vector, data.open_norm, "bias")
        return Data(data.nodes)
    node = builder.node_of(data)
    if data.norm:
        node = builder.node(data.norm, (node,), (view.size, 1, 1, 1))
        builder.claim(vector, node, "bias")
        return Data((node,))
    channels = builder.nodes[node].shape[0]
    is_vector = sum(size > 1 for size in view.shape) <= 1
    if is_vector or view.size == channels:
        node = builder.node("bias", (node,), (view.size, 1, 1, 1))
        builder.claim(vector, node, "bias")
        return Data((node,))
    position = add_position(builder, view, channels or None)
    return Data((builder.merge("sum", (node, position)),))
