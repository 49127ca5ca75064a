"""Loops whose body is traced a single time, as a recurrent network has every layer once.

What a body returns may come from the state before it: a scan that emits its old carry, a state
that another one enters an iteration later. Such values are traced after the others, on the state
that these have become, so that nothing of the loop is lost.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend import core

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.dependence import (
    LabelSet,
    find_dependence,
    find_loop_dependence,
    join_labels,
)
from ghn_jax.tracing.interpreter import interpret
from ghn_jax.tracing.jaxprs import open_jaxpr, take_part
from ghn_jax.tracing.values import Constant, Data, Value


def run_once(
    builder: GraphBuilder,
    body: Any,
    consts: Sequence[Value],
    carry: Sequence[Value],
    rows: Sequence[Value],
) -> list[Value]:
    """Trace the body of a loop once.

    Args:
        builder: Collects the nodes.
        body: The jaxpr of (consts, carry, rows) -> (carry, emitted values).
        consts: What does not change.
        carry: The state before the first iteration.
        rows: What an iteration gets of the scanned arrays.

    Returns:
        The state after the loop, and what it emits.
    """
    count = len(carry)
    carry = _fill_state(body, consts, carry, rows)
    outputs = interpret(builder, body, [*consts, *carry, *rows])
    old, new = _find_needs(body, len(consts), count)
    reach = _close([before | after for before, after in zip(old, new, strict=True)][:count])

    def is_lost(index):
        """Return whether an output misses what the state it needs has become."""
        for need in old[index]:
            is_mutual = index < count and index in reach[need]
            state = outputs[need]
            if index == need or is_mutual or not isinstance(state, Data):
                continue
            value = outputs[index]
            if not isinstance(value, Data) or not builder.leads_to(state.nodes, value.nodes):
                return True
        return False

    inner = open_jaxpr(body)
    for _ in range(count + 1):
        late = [index for index in range(len(outputs)) if is_lost(index)]
        if not late:
            break
        outvars = [inner.outvars[index] for index in late]
        others = [index for index in range(count) if index not in late]
        given = {
            inner.outvars[index]: outputs[index]
            for index in others
            if not isinstance(inner.outvars[index], core.Literal)
            and inner.outvars[index] not in inner.invars
        }
        part = take_part(inner, outvars, given)
        inputs = [*consts, *outputs[:count], *rows, *given.values()]
        for index, value in zip(late, interpret(builder, part, inputs), strict=True):
            outputs[index] = value
    return outputs


def _fill_state(body, consts, carry, rows):
    # A state that starts as zeros holds data from the second iteration on.
    # What it changes is not known, such as the value of a counter.
    carry = [
        dataclasses.replace(value, value=None) if isinstance(value, Constant) else value
        for value in carry
    ]
    data = next((value for value in (*carry, *consts, *rows) if isinstance(value, Data)), None)
    if data is None:
        return list(carry)
    labels = [
        [frozenset({"data"} if isinstance(value, Data) else ()) for value in values]
        for values in (consts, carry, rows)
    ]
    found = find_loop_dependence(body, *labels)
    return [
        Data(data.nodes) if label and isinstance(value, Constant) else value
        for label, value in zip(found, carry, strict=False)
    ]


def _find_needs(body, num_consts, count):
    """Return which old and which new states every output of the body is computed from."""
    inner = open_jaxpr(body)
    invars = inner.invars[num_consts : num_consts + count]
    labels: list[LabelSet] = [frozenset()] * len(inner.invars)
    labels[num_consts : num_consts + count] = [frozenset({("old", i)}) for i in range(count)]
    relabelled = {
        var: frozenset({("new", index)})
        for index, var in enumerate(inner.outvars[:count])
        if not isinstance(var, core.Literal) and var not in inner.invars
    }
    found = find_dependence(body, labels, relabelled)
    for index, var in enumerate(inner.outvars):
        if index >= count and not isinstance(var, core.Literal) and var in relabelled:
            found[index] = relabelled[var]  # emits the new state
        elif not isinstance(var, core.Literal) and var in invars:
            place = invars.index(var)
            found[index] = frozenset({("old", place)} if place != index else ())
    old, new = (
        [frozenset(i for kind, i in labels if kind == wanted) for labels in found]
        for wanted in ("old", "new")
    )
    return old, new


def _close(needs):
    """Return what every state depends on, over any number of iterations."""
    reach = list(needs)
    for _ in reach:
        reach = [found | join_labels(reach[i] for i in found) for found in reach]
    return reach
