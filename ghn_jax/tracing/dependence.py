"""Which values of a jaxpr depend on which of its inputs, decided by the jaxpr alone.

Rules say what a value *is*; that it depends on the images at all must not be left to them. In: a
jaxpr and labels of its inputs. Out: the labels that reach each output.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.extend import core

from ghn_jax.tracing.jaxprs import (
    CALLS,
    find_jaxpr,
    open_jaxpr,
    split_scan_inputs,
    split_while_inputs,
)

LabelSet = frozenset[Any]


def find_dependence(
    jaxpr: Any, inputs: Sequence[LabelSet], relabelled: Mapping[Any, LabelSet] | None = None
) -> list[LabelSet]:
    """Find what the outputs of a jaxpr depend on.

    Args:
        jaxpr: The jaxpr, open or closed.
        inputs: Labels of its inputs.
        relabelled: Labels that variables have for those who use them; as outputs of the jaxpr they
            have the labels of what they are computed from.

    Returns:
        For each output, the labels of all inputs that it depends on.
    """
    jaxpr, relabelled = open_jaxpr(jaxpr), relabelled or {}
    known: dict[Any, LabelSet] = dict(zip(jaxpr.invars, inputs, strict=True))

    def use(var):
        if isinstance(var, core.Literal):
            return frozenset()
        return relabelled[var] if var in relabelled else known.get(var, frozenset())

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _through(eqn, [*map(use, eqn.invars)]), strict=True))
    return [
        frozenset() if isinstance(var, core.Literal) else known.get(var, frozenset())
        for var in jaxpr.outvars
    ]


def find_loop_dependence(
    body: Any,
    consts: Sequence[LabelSet],
    carry: Sequence[LabelSet],
    rows: Sequence[LabelSet] = (),
) -> list[LabelSet]:
    """Find what a loop's results depend on, over any number of iterations.

    Args:
        body: The jaxpr of (consts, carry, rows) -> (carry, emitted values).
        consts: Labels of what does not change.
        carry: Labels of the state before the first iteration.
        rows: Labels of the scanned arrays.

    Returns:
        Labels of the state after the loop, and of what it emits.
    """
    carry = list(carry)
    while True:
        outputs = find_dependence(body, [*consts, *carry, *rows])
        joined = [old | new for old, new in zip(carry, outputs, strict=False)]
        if joined == carry:
            return [*carry, *outputs[len(carry) :]]
        carry = joined


def join_labels(labels: Iterable[LabelSet]) -> LabelSet:
    """Return the union of labels."""
    return frozenset().union(*labels)


def _through(eqn, inputs):
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return find_loop_dependence(params["jaxpr"], *split_scan_inputs(params, inputs))
    if name == "while":
        of_condition, consts, carry = split_while_inputs(params, inputs)
        outputs = find_loop_dependence(params["body_jaxpr"], consts, carry)
        (stops,) = find_dependence(params["cond_jaxpr"], [*of_condition, *outputs])
        return [labels | stops for labels in outputs]
    if name == "cond":
        index, *operands = inputs
        branches = [find_dependence(branch, operands) for branch in params["branches"]]
        return [join_labels([index, *labels]) for labels in zip(*branches, strict=True)]
    inner = find_jaxpr(eqn)
    if name in CALLS and inner is not None:
        return find_dependence(inner, inputs)
    return [join_labels(inputs)] * len(eqn.outvars)
