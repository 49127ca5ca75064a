"""The table from primitive to rule.

A rule is `rule(builder, eqn, inputs) -> output or list of outputs`: it gets the equation of the
jaxpr and what is known of its inputs, may add nodes and claim parameters, and says what is known of
the outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.values import Constant, Data, Value, Weight

Rule = Callable[[GraphBuilder, Any, Sequence[Value]], Value | Sequence[Value]]
RULES: dict[str, Rule] = {}


def register_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for primitives, replacing the one they have.

    Args:
        *names: Names of primitives as a jaxpr prints them; `jit:NAME` for a call of a jitted
            function NAME, which then is not looked into.

    Returns:
        A decorator.

    Example:
        >>> @register_rule("jit:flash_attention")
        ... def attend(builder, eqn, inputs):
        ...     parents = [builder.node_of(x) for x in inputs if isinstance(x, Data)]
        ...     return Data((builder.node("msa", parents),))
    """
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"names is {names!r}, expected names of primitives")

    def register(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return register


def unknown(builder: GraphBuilder, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Return what is known about the outputs of a primitive without a rule."""
    num_outputs = len(eqn.outvars)
    data = [value for value in inputs if isinstance(value, Data)]
    weights = [value for value in inputs if isinstance(value, Weight)]
    if data:
        keep_weights(builder, weights, f"enters {eqn.primitive.name}, which has no rule")
        node = builder.merge("sum", [builder.node_of(value) for value in data])
        return [Data((node,))] * num_outputs
    if weights:
        same_shape = len(inputs) == num_outputs == 1 and (
            eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape
        )
        return [weights[0] if same_shape else derived(*weights)] * num_outputs
    is_state = any(isinstance(value, Constant) and value.is_state for value in inputs)
    return [Constant(is_state)] * num_outputs


def derived(*weights: Weight) -> Weight:
    """Return a value that depends on parameters but is not a rearrangement of any."""
    return Weight(frozenset().union(*(weight.parameters for weight in weights)))


def keep_weights(builder: GraphBuilder, weights: Sequence[Weight], reason: str) -> None:
    """State why the parameters of weights are not predicted."""
    for weight in weights:
        builder.keep(weight.parameters, reason)
