"""Which values of a jaxpr depend on which of its inputs, decided by the jaxpr alone.

Rules say what a value *is*; that it depends on the images at all must not be left to them. In: a
jaxpr and labels of its inputs. Out: the labels that reach each output.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend import core

LabelSet = frozenset[Any]

CALLS = (
    "jit pjit closed_call core_call xla_call named_call remat remat2 checkpoint custom_jvp_call"
    " custom_vjp_call custom_vjp_call_jaxpr custom_lin"
).split()
CONTROL_FLOW = ("scan", "while", "cond")


class Part(NamedTuple):
    """Those equations of a jaxpr that some of its values need; `interpret` runs it as a jaxpr."""

    constvars: Sequence[Any]
    invars: Sequence[Any]
    eqns: Sequence[Any]
    outvars: Sequence[Any]


def open_jaxpr(jaxpr: Any) -> Any:
    """Return a jaxpr without the values that it closes over."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def take_part(jaxpr: Any, outvars: Sequence[Any], given: Iterable[Any] = ()) -> Part:
    """Cut out what computes some values.

    Args:
        jaxpr: An open jaxpr.
        outvars: Variables of it.
        given: Variables of it that are known and become inputs, after the jaxpr's own.
    """
    given = tuple(given)
    needed, eqns = set(outvars) - set(given), []
    for eqn in reversed(jaxpr.eqns):
        if any(var in needed for var in eqn.outvars):
            eqns.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, core.Literal))
            needed.difference_update(given)
    return Part(jaxpr.constvars, (*jaxpr.invars, *given), eqns[::-1], outvars)


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


def join_labels(labels: Iterable[LabelSet]) -> LabelSet:
    """Return the union of labels."""
    return frozenset().union(*labels)


def _through(eqn, inputs):
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        num_consts, num_carry = _scan_sizes(eqn)
        return _through_loop(params["jaxpr"], inputs, num_consts, num_carry)
    if name == "while":
        skip, num_consts = params["cond_nconsts"], params["body_nconsts"]
        rest = inputs[skip:]
        outputs = _through_loop(params["body_jaxpr"], rest, num_consts, len(rest) - num_consts)
        (stops,) = find_dependence(params["cond_jaxpr"], [*inputs[:skip], *outputs])
        return [labels | stops for labels in outputs]
    if name == "cond":
        index, *operands = inputs
        branches = [find_dependence(branch, operands) for branch in params["branches"]]
        return [join_labels([index, *labels]) for labels in zip(*branches, strict=True)]
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    inner = next((params[key] for key in names if key in params), None)
    if name in CALLS and inner is not None:
        return find_dependence(inner, inputs)
    return [join_labels(inputs)] * len(eqn.outvars)


def _through_loop(body, inputs, num_consts, num_carry):
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    rows = inputs[num_consts + num_carry :]
    while True:
        outputs = find_dependence(body, [*consts, *carry, *rows])
        joined = [old | new for old, new in zip(carry, outputs, strict=False)]
        if joined == carry:
            return [*carry, *outputs[num_carry:]]
        carry = joined


def _scan_sizes(eqn):
    if "ft_in" in eqn.params:  # since JAX 0.12
        consts, carry, _ = eqn.params["ft_in"].update(list(range(len(eqn.invars)))).unpack()
        return len(list(consts)), len(list(carry))
    return eqn.params["num_consts"], eqn.params["num_carry"]
