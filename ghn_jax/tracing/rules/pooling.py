"""Windows and reductions: pools, and the moments of norms."""

import dataclasses
import math

from ghn_jax.tracing.builder import pool_shape
from ghn_jax.tracing.registry import derived, register_rule
from ghn_jax.tracing.rules.parameters import sum_squares
from ghn_jax.tracing.values import Constant, Data, Statistic, Weight


def _register_windows(name, kind):
    @register_rule(name)
    def pool(builder, eqn, inputs):
        value = inputs[0]
        if isinstance(value, Weight):
            return derived(value)
        if not isinstance(value, Data):
            return Constant()
        window = [size for size in eqn.params["window_dimensions"] if size > 1]
        if not window:
            return value
        in_shape, out_shape = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        whole = all(
            size == 1 or (size == have and out == 1)
            for size, have, out in zip(
                eqn.params["window_dimensions"], in_shape, out_shape, strict=True
            )
        )
        parents = (builder.node_of(value),)
        if whole and kind == "avg":
            return Data((builder.node("glob_avg", parents),))
        return Data((builder.node(f"{kind}_pool", parents, pool_shape(window)),))


_register_windows("reduce_window_max", "max")
_register_windows("reduce_window_min", "max")
_register_windows("reduce_window_sum", "avg")


@register_rule("reduce_window")
def _reduce_window(builder, eqn, inputs):
    from ghn_jax.tracing.registry import RULES

    names = {inner.primitive.name for inner in eqn.params["jaxpr"].eqns}
    kind = "reduce_window_max" if names & {"max", "min"} else "reduce_window_sum"
    return RULES[kind](builder, eqn, inputs)


def _register_reduction(name, kind):
    @register_rule(name)
    def reduce(builder, eqn, inputs):
        value = inputs[0]
        if isinstance(value, Weight):
            is_vector = math.prod(eqn.outvars[0].aval.shape) > 1
            return sum_squares(value) if is_vector and kind == "avg" else derived(value)
        if not isinstance(value, Data):
            return dataclasses.replace(value, value=None)
        # `psum` also reduces over devices, by name, which changes nothing here.
        axes = [axis for axis in eqn.params.get("axes", ()) if not isinstance(axis, str)]
        if not axes:  # a number of devices is not known
            unknown = value.statistic and value.statistic.scaled(None)
            return dataclasses.replace(value, statistic=unknown)
        shape, out_shape = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        loses_batch = builder.has_batch(shape) and not builder.has_batch(out_shape)
        norm = "bn" if loses_batch else "ln"
        old = value.statistic
        if old is not None and old.norm == "bn":
            total = math.prod(shape[axis] for axis in axes)
            return dataclasses.replace(value, statistic=old.scaled(total))
        nodes, within = value.nodes, value.within
        if old is not None or len(value.taps) > 1:
            nodes, within = (builder.node_of(value),), None
        window = tuple(shape[axis] for axis in axes)
        gain = float(math.prod(window)) if kind == "avg" else 1.0
        statistic = Statistic(norm, kind, window=window, gain=gain)
        return Data(
            nodes,
            statistic,
            is_exponential=value.is_exponential,
            is_product=value.is_product,
            is_softmax=value.is_softmax,
            is_mask=value.is_mask,
            within=within,
        )


_register_reduction("reduce_sum", "avg")
_register_reduction("psum", "avg")
for _name in ("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"):
    _register_reduction(_name, "max")
