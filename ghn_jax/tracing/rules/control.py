"""Calls and control flow: what is inside is traced as if it stood outside."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ghn_jax.tracing.functions import Function
from ghn_jax.tracing.interpreter import interpret
from ghn_jax.tracing.registry import register_rule, unknown
from ghn_jax.tracing.values import Constant, Data, Weight

_CALLS = (
    "jit pjit closed_call core_call xla_call named_call remat remat2 checkpoint custom_jvp_call"
    " custom_vjp_call custom_vjp_call_jaxpr custom_lin"
).split()


@register_rule(*_CALLS)
def _call(builder, eqn, inputs):
    jaxpr = find_jaxpr(eqn)
    return unknown(builder, eqn, inputs) if jaxpr is None else interpret(builder, jaxpr, inputs)


def find_jaxpr(eqn: Any) -> Any:
    """Return the jaxpr that an equation calls, None if it calls none."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return next((eqn.params[name] for name in names if name in eqn.params), None)


@register_rule("jit:softplus")
def _softplus(builder, eqn, inputs):
    if isinstance(inputs[0], Weight):  # several functions of itself: not invertible one by one
        return inputs[0].through(Function("softplus"))
    return _call(builder, eqn, inputs)


@register_rule("scan")
def _scan(builder, eqn, inputs):
    """Once per iteration if parameters are stacked along the scanned axis, else a single time."""
    params = eqn.params
    consts, carry, scanned = split_scan_inputs(params, inputs)
    variables = eqn.invars[len(consts) + len(carry) :]
    unrolls = any(isinstance(value, Weight) and value.views for value in scanned)
    if not unrolls:
        carry = _join_stream(carry, [*consts, *scanned])
    outputs = []
    for step in range(params["length"] if unrolls else 1):
        index = params["length"] - 1 - step if params["reverse"] else step
        rows = [
            _take_row(value, var.aval.shape, index) if unrolls else _as_row(value)
            for value, var in zip(scanned, variables, strict=True)
        ]
        outputs = interpret(builder, params["jaxpr"], [*consts, *carry, *rows])
        carry = outputs[: len(carry)]
    return [*carry, *outputs[len(carry) :]]


def split_scan_inputs(
    params: Mapping[str, Any], inputs: Sequence[Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return what is constant over the iterations, what is carried, and what is scanned."""
    if "ft_in" in params:  # since JAX 0.12
        consts, carry, scanned = params["ft_in"].update(inputs).unpack()
        return list(consts), list(carry), list(scanned)
    inputs = list(inputs)
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
    return inputs[:first], inputs[first:second], inputs[second:]


def _join_stream(carry, others):
    # A state that starts as zeros holds data from the second iteration on, and a counter counts.
    carry = [
        dataclasses.replace(value, value=None) if isinstance(value, Constant) else value
        for value in carry
    ]
    data = next((value for value in (*carry, *others) if isinstance(value, Data)), None)
    if data is None:
        return carry
    return [Data(data.nodes) if isinstance(value, Constant) else value for value in carry]


def _take_row(value, shape, index):
    if not isinstance(value, Weight):
        return value
    rows = []
    for view in value.views:
        if view.shape[0] != shape[0]:
            rows.append(view.reshape(view.shape[1:]))
            continue
        whole = (slice(0, size) for size in view.shape[1:])
        rows.append(view.slice((slice(index, index + 1), *whole)).reshape(view.shape[1:]))
    return dataclasses.replace(value, views=tuple(rows))


def _as_row(value):
    return Weight(value.parameters) if isinstance(value, Weight) else value


@register_rule("while")
def _while(builder, eqn, inputs):
    skip, num_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    consts, carry = inputs[skip : skip + num_consts], list(inputs[skip + num_consts :])
    carry = _join_stream(carry, consts)
    return interpret(builder, eqn.params["body_jaxpr"], [*consts, *carry])


@register_rule("cond")
def _cond(builder, eqn, inputs):
    results = [interpret(builder, branch, inputs[1:]) for branch in eqn.params["branches"]]
    return [_join_branches(builder, values) for values in zip(*results, strict=True)]


def _join_branches(builder, values):
    data = [value for value in values if isinstance(value, Data)]
    if not data:
        weight = next((value for value in values if isinstance(value, Weight)), None)
        return dataclasses.replace(values[0], value=None) if weight is None else weight
    if all(value == data[0] for value in data):
        return data[0]
    return Data((builder.merge("sum", [builder.node_of(value) for value in data]),))
