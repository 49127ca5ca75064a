"""Run a jaxpr primitive by primitive, whatever functions, loops and branches they lie in.

In: a jaxpr and its inputs. Out: some of its outputs. Nothing is compiled for the network: the
programs are those of single primitives, which the next call and the next network share.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from ghn_jax.tracing.jaxprs import (
    CALLS,
    find_jaxpr,
    open_jaxpr,
    split_scan_inputs,
    split_while_inputs,
    take_part,
)


class Execution:
    """Runs jaxprs on arrays. A subclass may run them on what knows more: it says how, below."""

    def lift(self, array: Any) -> Any:
        """Return the value of an array that stands in a jaxpr."""
        return array

    def array_of(self, value: Any) -> Any:
        """Return the array of a value."""
        return value

    def apply(self, eqn: Any, values: Sequence[Any]) -> list[Any]:
        """Return the outputs of a primitive that is no call, loop or branch."""
        outputs = eqn.primitive.bind(*values, **eqn.params)
        return list(outputs) if eqn.primitive.multiple_results else [outputs]

    def take_row(self, value: Any, step: int) -> Any:
        """Return what an iteration of a scan gets of a scanned array."""
        return jax.lax.dynamic_index_in_dim(value, step, keepdims=False)

    def stack(self, values: Sequence[Any], aval: Any) -> Any:
        """Return what a scan emits, of what its iterations emit; `aval` is one of these."""
        return jnp.stack(values) if values else jnp.zeros((0, *aval.shape), aval.dtype)

    def run(
        self, jaxpr: Any, inputs: Sequence[Any], indices: Sequence[int] | None = None
    ) -> list[Any]:
        """Run a jaxpr.

        Args:
            jaxpr: The jaxpr; an open one closes over nothing.
            inputs: Values of its inputs; one that no wanted output needs may be None.
            indices: Indices of the wanted outputs; None are all.

        Returns:
            Their values.
        """
        consts = [self.lift(array) for array in getattr(jaxpr, "consts", ())]
        inner = open_jaxpr(jaxpr)
        indices = range(len(inner.outvars)) if indices is None else indices
        outvars = [inner.outvars[index] for index in indices]
        part = take_part(inner, outvars)
        used = part.used
        last_use = {
            var: eqn for eqn in part.eqns for var in eqn.invars if not isinstance(var, core.Literal)
        }
        known = dict(zip((*inner.constvars, *inner.invars), (*consts, *inputs), strict=True))

        def read(var):
            return self.lift(var.val) if isinstance(var, core.Literal) else known[var]

        for eqn in part.eqns:
            wanted = [index for index, var in enumerate(eqn.outvars) if var in used]
            outputs = self._run_equation(eqn, [read(var) for var in eqn.invars], wanted)
            known |= {eqn.outvars[index]: x for index, x in zip(wanted, outputs, strict=True)}
            for var in eqn.invars:  # frees activations that nothing else needs
                if not isinstance(var, core.Literal) and last_use[var] is eqn:
                    if var not in outvars:
                        known.pop(var, None)
        return [read(var) for var in outvars]

    def _run_equation(self, eqn, values, wanted) -> list[Any]:
        name, params = eqn.primitive.name, eqn.params
        function = find_jaxpr(eqn)
        if name in CALLS and function is not None:
            return self.run(function, values, wanted)
        if name == "cond":
            branch = params["branches"][int(self.array_of(values[0]))]
            return self.run(branch, values[1:], wanted)
        if name == "while":
            outputs = self._run_while(params, values)
        elif name == "scan":
            outputs = self._run_scan(params, values)
        else:
            outputs = self.apply(eqn, values)
        return [outputs[index] for index in wanted]

    def _run_while(self, params, values) -> list[Any]:
        of_condition, of_body, carry = split_while_inputs(params, values)
        while bool(self.array_of(self.run(params["cond_jaxpr"], [*of_condition, *carry])[0])):
            carry = self.run(params["body_jaxpr"], [*of_body, *carry])
        return carry

    def _run_scan(self, params, values) -> list[Any]:
        consts, carry, scanned = split_scan_inputs(params, values)
        num_carry, length = len(carry), params["length"]
        steps = range(length)[::-1] if params["reverse"] else range(length)
        collected = []
        for step in steps:
            rows = [self.take_row(x, step) for x in scanned]
            outputs = self.run(params["jaxpr"], [*consts, *carry, *rows])
            carry = outputs[:num_carry]
            collected.append(outputs[num_carry:])
        if params["reverse"]:
            collected.reverse()
        avals = params["jaxpr"].out_avals[num_carry:]
        emitted = [
            self.stack([values[index] for values in collected], aval)
            for index, aval in enumerate(avals)
        ]
        return [*carry, *emitted]
