"""Walk a jaxpr, equation by equation, through the table of rules."""

from collections.abc import Sequence
from typing import Any

from jax.extend import core

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.registry import RULES, unknown
from ghn_jax.tracing.values import Constant, Value

_CONSTANT = Constant()


def interpret(builder: GraphBuilder, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
    """What is known of the outputs of a jaxpr.

    Args:
        builder: Gets the nodes and the parameters' places.
        jaxpr: Open or closed; what it closes over is constant.
        inputs: What is known of its inputs.

    Returns:
        One value per output.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    known: dict[Any, Value] = dict.fromkeys(jaxpr.constvars, _CONSTANT)
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(var):
        return _CONSTANT if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        values = [read(var) for var in eqn.invars]
        name = eqn.primitive.name
        rule = RULES.get(name, unknown)
        if name in ("jit", "pjit"):
            rule = RULES.get(f"jit:{eqn.params['name']}", rule)
        outputs = rule(builder, eqn, values)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(var) for var in jaxpr.outvars]
