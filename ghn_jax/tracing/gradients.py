"""Which parameters a gradient of the outputs reaches, decided by the jaxpr alone.

What a network keeps fixed stands behind `stop_gradient`; what it only compares, rounds or indexes
with has no gradient either. Neither is a parameter to predict.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from ghn_jax.tracing.jaxprs import find_jaxpr, open_jaxpr, split_scan_inputs

FIXED = "stands behind stop_gradient: kept as initialised"
COMPARED = "only enters comparisons or rounding, which have no gradient"

# Kinds of paths from a value to the outputs, as bits: free, through `stop_gradient`, through a
# comparison, through both.
_FREE, _STOPPED, _COMPARED, _BOTH = 1, 2, 4, 8
_FLAT = ("sign", "floor", "ceil", "round", "nextafter")


def find_fixed(jaxpr: Any, variables: Sequence[Any], num_outputs: int) -> dict[int, str]:
    """Find the variables that are used, but that no gradient reaches.

    Args:
        jaxpr: A closed jaxpr.
        variables: Values in it.
        num_outputs: Number of its first outputs that count.

    Returns:
        The reason for each index of `variables` that is fixed.
    """
    inner = jaxpr.jaxpr
    outputs = [_FREE] * num_outputs + [0] * (len(inner.outvars) - num_outputs)
    paths = _follow(inner, outputs, set(variables))
    found = [paths.get(var, 0) for var in variables]
    # Where a network returns classes, all its parameters are behind a comparison.
    kinds = (_FREE, _COMPARED, _STOPPED, _BOTH)
    wanted = next((kind for kind in kinds if any(path & kind for path in found)), _FREE)
    return {
        index: COMPARED if path & _COMPARED else FIXED
        for index, path in enumerate(found)
        if path and not path & wanted
    }


def _follow(jaxpr, outputs, variables=frozenset(), is_custom=False):
    """Paths to the outputs of every value of a jaxpr."""
    paths: dict[Any, int] = {}

    def add(var, path):
        if path and not isinstance(var, core.Literal):
            paths[var] = paths.get(var, 0) | path

    for var, path in zip(jaxpr.outvars, outputs, strict=True):
        add(var, path)
    for eqn in reversed(jaxpr.eqns):
        # What a variable is drawn from does not matter.
        found = [0 if var in variables else paths.get(var, 0) for var in eqn.outvars]
        if any(found):
            for var, path in zip(eqn.invars, _through(eqn, found, is_custom), strict=True):
                add(var, path)
    return paths


def _through(eqn, outputs, is_custom):
    """Paths from the inputs of an equation, given those from its outputs."""
    name = eqn.primitive.name
    if not is_custom:
        outputs = [
            path if _is_real(var) else _compare(path)
            for var, path in zip(eqn.outvars, outputs, strict=True)
        ]
    if name == "scan":
        return _through_scan(eqn, outputs, is_custom)
    if name == "while":
        return _through_while(eqn, outputs, is_custom)
    if name == "cond":
        branches = [_inputs(open_jaxpr(b), outputs, is_custom) for b in eqn.params["branches"]]
        union = [_join(paths) for paths in zip(*branches, strict=True)]
        return [_compare(_join(outputs)), *union]
    inner = open_jaxpr(find_jaxpr(eqn))
    if inner is not None and len(inner.invars) == len(eqn.invars):
        # Their own derivative may pass what their computation stops, as in quantisation.
        return _inputs(inner, outputs, is_custom or name.startswith("custom_"))
    path = _join(outputs)
    if not is_custom and name == "stop_gradient":
        path = _stop(path)
    elif not is_custom and name in _FLAT:
        path = _compare(path)
    return [path] * len(eqn.invars)


def _through_while(eqn, outputs, is_custom):
    skip, num_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    body, condition = (open_jaxpr(eqn.params[name]) for name in ("body_jaxpr", "cond_jaxpr"))
    # What only sets the number of iterations is compared, in the state before each of them, too.
    stops = _inputs(condition, [_compare(_join(outputs))], is_custom)
    carry = [path | stop for path, stop in zip(outputs, stops[skip:], strict=True)]
    inputs = _through_loop(body, carry, num_consts, len(carry), is_custom)
    first = [old | new for old, new in zip(carry, inputs[num_consts:], strict=True)]
    return [*stops[:skip], *inputs[:num_consts], *first]


def _through_scan(eqn, outputs, is_custom):
    positions = list(range(len(eqn.invars)))
    consts, carry, _ = split_scan_inputs(eqn.params, positions)
    body = open_jaxpr(eqn.params["jaxpr"])
    return _through_loop(body, outputs, len(consts), len(carry), is_custom)


def _through_loop(body, outputs, num_consts, num_carry, is_custom):
    carry, rest = list(outputs[:num_carry]), list(outputs[num_carry:])
    while True:
        inputs = _inputs(body, [*carry, *rest], is_custom)
        found = inputs[num_consts : num_consts + num_carry]
        joined = [old | new for old, new in zip(carry, found, strict=True)]
        if joined == carry:
            return inputs
        carry = joined


def _inputs(jaxpr, outputs, is_custom):
    paths = _follow(jaxpr, outputs, is_custom=is_custom)
    return [paths.get(var, 0) for var in jaxpr.invars]


def _join(paths):
    joined = 0
    for path in paths:
        joined |= path
    return joined


def _stop(path):
    free, compared = path & (_FREE | _STOPPED), path & (_COMPARED | _BOTH)
    return (_STOPPED if free else 0) | (_BOTH if compared else 0)


def _compare(path):
    free, stopped = path & (_FREE | _COMPARED), path & (_STOPPED | _BOTH)
    return (_COMPARED if free else 0) | (_BOTH if stopped else 0)


def _is_real(var):
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)
