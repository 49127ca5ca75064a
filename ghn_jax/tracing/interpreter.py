"""Walk a jaxpr, equation by equation, through the table of rules."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend import core

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.jaxprs import CALLS, CONTROL_FLOW, open_jaxpr
from ghn_jax.tracing.registry import RULES, unknown
from ghn_jax.tracing.values import Constant, Data, Value, Weight

_CONSTANT = Constant()
# Primitives that keep a kernel that data choose from a stack, or apply it.
_FOLLOW_CHOICE = frozenset((*CALLS, *CONTROL_FLOW)) | frozenset(
    "convert_element_type copy reduce_precision reshape squeeze expand_dims transpose rev slice"
    " split broadcast_in_dim sharding_constraint select_n dot_general".split()
)


class EntangledError(ValueError):
    """A variable is computed from the images."""


def interpret(
    builder: GraphBuilder,
    jaxpr: Any,
    inputs: Sequence[Value],
    variables: Mapping[Any, Value] | None = None,
) -> list[Value]:
    """Derive what is known of the outputs of a jaxpr.

    Args:
        builder: Collects the nodes, and where the parameters belong.
        jaxpr: The jaxpr, open or closed; values that it closes over are constants.
        inputs: What is known of its inputs.
        variables: What is known of values inside it, overriding what they are computed from.

    Returns:
        One value per output.

    Raises:
        EntangledError: If one of `variables` is computed from data.
    """
    variables = variables or {}
    consts = getattr(jaxpr, "consts", ())
    jaxpr = open_jaxpr(jaxpr)
    known: dict[Any, Value] = dict.fromkeys(jaxpr.constvars, _CONSTANT)
    known.update(zip(jaxpr.constvars, map(Constant.of, consts), strict=False))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(var):
        return Constant.of(var.val) if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        values = [read(var) for var in eqn.invars]
        name = eqn.primitive.name
        if not _follows_choice(name, values):
            values = [builder.look_up(value) for value in values]
        rule = RULES.get(name, unknown)
        if name in ("jit", "pjit"):
            rule = RULES.get(f"jit:{eqn.params['name']}", rule)
        outputs = rule(builder, eqn, values)
        if isinstance(outputs, Constant | Weight | Data):
            outputs = [outputs]
        if name not in CALLS and name not in CONTROL_FLOW:  # those are decided inside
            outputs = _keep_dependence(builder, values, outputs)
        known.update(zip(eqn.outvars, outputs, strict=True))
        if variables:
            for var in eqn.outvars:
                if var in variables:
                    if any(isinstance(value, Data) for value in values):
                        raise EntangledError(f"a variable is computed from data by {name}")
                    known[var] = variables[var]
    return [read(var) for var in jaxpr.outvars]


def _keep_dependence(builder, inputs, outputs):
    """Let what is computed from data be data, whatever a rule says: the jaxpr decides."""
    data = [value for value in inputs if isinstance(value, Data)]
    nodes = [*(value.nodes for value in data), *map(_choosing_nodes, inputs)]
    nodes = list(dict.fromkeys(node for group in nodes for node in group))
    if not nodes:
        return outputs
    # Parameters are followed through moments, which scale them, and through a choice among them.
    only_moments = bool(data) and all(value.statistic for value in data)

    def is_traced(value):
        if isinstance(value, Weight):
            return only_moments or bool(value.norm or value.chosen_by)
        return isinstance(value, Data)

    return [
        value if is_traced(value) else Data((builder.merge("sum", nodes),)) for value in outputs
    ]


def _follows_choice(name, values):
    others = [value for value in values if not _choosing_nodes(value)]
    if len(others) == len(values) or name in _FOLLOW_CHOICE:
        return True
    return name in ("mul", "div") and all(isinstance(value, Constant) for value in others)


def _choosing_nodes(value):
    return value.chosen_by if isinstance(value, Weight) else ()
