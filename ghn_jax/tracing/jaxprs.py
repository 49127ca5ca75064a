"""Parts of jaxprs: what equations call, how loops divide their inputs, what some values need."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

CALLS = (
    "jit pjit closed_call core_call xla_call named_call remat remat2 checkpoint custom_jvp_call"
    " custom_vjp_call custom_vjp_call_jaxpr custom_lin"
).split()
"""Primitives that do nothing but call a function."""
CONTROL_FLOW = ("scan", "while", "cond")


class Part(NamedTuple):
    """Those equations of a jaxpr that some of its values need; `interpret` runs it as a jaxpr."""

    constvars: Sequence[Any]
    invars: Sequence[Any]
    eqns: Sequence[Any]
    outvars: Sequence[Any]

    @property
    def used(self) -> set[Any]:
        """The variables that are read: by an equation, or as an output."""
        read = [var for eqn in self.eqns for var in eqn.invars]
        return {var for var in (*self.outvars, *read) if not isinstance(var, core.Literal)}


def open_jaxpr(jaxpr: Any) -> Any:
    """Return a jaxpr without the values that it closes over."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def find_jaxpr(eqn: Any) -> Any:
    """Return the jaxpr that an equation calls, None if it calls none."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    return next((eqn.params[name] for name in names if name in eqn.params), None)


def walk_equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr, each followed by those of the jaxprs in its parameters."""
    for eqn in open_jaxpr(jaxpr).eqns:
        yield eqn
        for leaf in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(open_jaxpr(leaf), "eqns"):
                yield from walk_equations(leaf)


def split_scan_inputs(
    params: Mapping[str, Any], inputs: Sequence[Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return what is constant over the iterations, what is carried, and what is scanned."""
    inputs = list(inputs)
    if "ft_in" in params:  # since JAX 0.12
        consts, carry, scanned = params["ft_in"].update(inputs).unpack()
        return list(consts), list(carry), list(scanned)
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
    return inputs[:first], inputs[first:second], inputs[second:]


def split_while_inputs(
    params: Mapping[str, Any], inputs: Sequence[Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return what is constant in the condition, what is in the body, and what is carried."""
    inputs, first = list(inputs), params["cond_nconsts"]
    second = first + params["body_nconsts"]
    return inputs[:first], inputs[first:second], inputs[second:]


def take_part(jaxpr: Any, outvars: Sequence[Any], given: Iterable[Any] = ()) -> Part:
    """Cut out what computes some values.

    Args:
        jaxpr: An open jaxpr.
        outvars: Variables of it, or literals.
        given: Variables of it that are known and become inputs, after the jaxpr's own.
    """
    given = tuple(given)
    needed, eqns = {var for var in outvars if not isinstance(var, core.Literal)} - set(given), []
    for eqn in reversed(jaxpr.eqns):
        if any(var in needed for var in eqn.outvars):
            eqns.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, core.Literal))
            needed.difference_update(given)
    return Part(jaxpr.constvars, (*jaxpr.invars, *given), eqns[::-1], outvars)
