"""Calls and control flow: what is inside is traced as if it stood outside."""

import dataclasses

from ghn_jax.tracing.functions import Function
from ghn_jax.tracing.interpreter import interpret
from ghn_jax.tracing.jaxprs import (
    CALLS,
    find_jaxpr,
    open_jaxpr,
    split_scan_inputs,
    split_while_inputs,
)
from ghn_jax.tracing.registry import keep_weights, register_rule, unknown
from ghn_jax.tracing.rules.arithmetic import join_cases
from ghn_jax.tracing.rules.loops import run_once
from ghn_jax.tracing.rules.tokens import choose
from ghn_jax.tracing.values import Constant, Data, Weight


@register_rule(*CALLS)
def _call(builder, eqn, inputs):
    jaxpr = find_jaxpr(eqn)
    return unknown(builder, eqn, inputs) if jaxpr is None else interpret(builder, jaxpr, inputs)


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
        rows = [_as_row(value) for value in scanned]
        return run_once(builder, params["jaxpr"], consts, carry, rows)
    outputs = []
    for step in range(params["length"]):
        index = params["length"] - 1 - step if params["reverse"] else step
        rows = [
            _take_row(value, var.aval.shape, index)
            for value, var in zip(scanned, variables, strict=True)
        ]
        outputs = interpret(builder, params["jaxpr"], [*consts, *carry, *rows])
        carry = outputs[: len(carry)]
    return [*carry, *outputs[len(carry) :]]


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
    of_condition, consts, carry = split_while_inputs(eqn.params, inputs)
    outputs = run_once(builder, eqn.params["body_jaxpr"], consts, carry, [])
    stops = interpret(builder, eqn.params["cond_jaxpr"], [*of_condition, *outputs])
    body = open_jaxpr(eqn.params["body_jaxpr"])
    for index, (old, new) in enumerate(zip(body.invars[len(consts) :], body.outvars, strict=True)):
        value = outputs[index]
        if isinstance(stops[0], Data) and not isinstance(value, Data) and old is not new:
            if isinstance(value, Weight):
                keep_weights(builder, [value], "is changed in a loop as often as data decide")
            outputs[index] = Data((builder.node_of(stops[0]),))
    return outputs


@register_rule("cond")
def _cond(builder, eqn, inputs):
    results = [interpret(builder, branch, inputs[1:]) for branch in eqn.params["branches"]]
    return [_join_branches(builder, inputs[0], values) for values in zip(*results, strict=True)]


def _join_branches(builder, index, values):
    cases = [value for value in values if not isinstance(value, Constant)]
    if isinstance(index, Data) and not any(isinstance(case, Data) for case in cases):
        cases.insert(0, Data((builder.node_of(index),)))
    if not cases:
        return dataclasses.replace(values[0], value=None)
    total = join_cases(builder, cases)
    if isinstance(index, Data) and isinstance(total, Data):
        return choose(builder, total, index)
    return total
