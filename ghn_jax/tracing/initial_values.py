"""Values that a network's own initialiser gives, without compiling the network.

In: the jaxpr of an initialiser, a key and images. Out: some of its outputs. It is run primitive by
primitive, whatever functions, loops and branches they lie in: the programs are those of single
primitives, which the next call and the next network share.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ghn_jax.arrays import PyTree
from ghn_jax.tracing.jaxprs import (
    CALLS,
    find_jaxpr,
    open_jaxpr,
    split_scan_inputs,
    split_while_inputs,
    take_part,
)


def draw_images(images: PyTree) -> PyTree:
    """Put arrays in the place of shapes: standard normal numbers, zeros where they are no floats.

    Args:
        images: Arrays, which are returned as they are, or their shapes.

    Returns:
        Arrays.
    """
    rng = np.random.default_rng(0)

    def draw(x):
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return np.zeros(x.shape, x.dtype)
        return rng.standard_normal(x.shape, dtype=np.float32).astype(x.dtype)

    return jax.tree.map(draw, images)


def needs_inputs(jaxpr: core.ClosedJaxpr, indices: Sequence[int], inputs: Sequence[int]) -> bool:
    """Whether some outputs are computed from some inputs.

    Args:
        jaxpr: A computation.
        indices: Indices of outputs.
        inputs: Indices of inputs.
    """
    inner = jaxpr.jaxpr
    used = take_part(inner, [inner.outvars[index] for index in indices]).used
    return any(inner.invars[index] in used for index in inputs)


def compute_outputs(
    jaxpr: core.ClosedJaxpr, indices: Sequence[int], inputs: Sequence[Any]
) -> list[Any]:
    """Compute some outputs of a computation, primitive by primitive.

    Args:
        jaxpr: The computation.
        indices: Indices of the outputs.
        inputs: All inputs; one that no such output needs may be None.

    Returns:
        The outputs. Those filled with one number are NumPy arrays.
    """
    values: dict[int, Any] = {index: find_constant(jaxpr.jaxpr, index) for index in indices}
    rest = [index for index, value in values.items() if value is None]
    values |= dict(zip(rest, _run(jaxpr.jaxpr, jaxpr.consts, inputs, rest), strict=True))
    return [values[index] for index in indices]


def find_constant(jaxpr: Any, index: int) -> np.ndarray | None:
    """Return an output's array if it is filled with one literal, else None."""
    var = jaxpr.outvars[index]
    if isinstance(var, core.Literal):
        aval: Any = var.aval
        return np.asarray(var.val, aval.dtype)
    eqn = next((eqn for eqn in reversed(jaxpr.eqns) if var in eqn.outvars), None)
    if eqn is None:
        return None
    if eqn.primitive.name in ("jit", "pjit"):
        return find_constant(eqn.params["jaxpr"].jaxpr, eqn.outvars.index(var))
    literal = eqn.invars[0] if len(eqn.invars) == 1 else None
    if eqn.primitive.name != "broadcast_in_dim" or not isinstance(literal, core.Literal):
        return None
    return np.full(var.aval.shape, literal.val, var.aval.dtype)


def _run(jaxpr, consts, inputs, indices) -> list[Any]:
    """Return the outputs with some indices."""
    outvars = [jaxpr.outvars[index] for index in indices]
    part = take_part(jaxpr, outvars)
    used = part.used
    last_use = {
        var: eqn for eqn in part.eqns for var in eqn.invars if not isinstance(var, core.Literal)
    }
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
    read = lambda var: var.val if isinstance(var, core.Literal) else values[var]  # noqa: E731
    for eqn in part.eqns:
        wanted = [index for index, var in enumerate(eqn.outvars) if var in used]
        outputs = _run_equation(eqn, [read(var) for var in eqn.invars], wanted)
        values |= {eqn.outvars[index]: x for index, x in zip(wanted, outputs, strict=True)}
        for var in eqn.invars:  # frees activations that nothing else needs
            if not isinstance(var, core.Literal) and last_use[var] is eqn and var not in outvars:
                values.pop(var, None)
    return [read(var) for var in outvars]


def _run_equation(eqn, inputs, wanted) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    function = find_jaxpr(eqn)
    if name in CALLS and function is not None:
        return _run_function(function, inputs, wanted)
    if name == "cond":
        branch = params["branches"][int(inputs[0])]
        return _run_function(branch, inputs[1:], wanted)
    if name == "while":
        outputs = _run_while(params, inputs)
    elif name == "scan":
        outputs = _run_scan(params, inputs)
    else:
        outputs = eqn.primitive.bind(*inputs, **params)
        outputs = outputs if eqn.primitive.multiple_results else [outputs]
    return [outputs[index] for index in wanted]


def _run_function(function, inputs, wanted=None) -> list[Any]:
    inner = open_jaxpr(function)
    wanted = range(len(inner.outvars)) if wanted is None else wanted
    return _run(inner, getattr(function, "consts", ()), inputs, wanted)


def _run_while(params, inputs) -> list[Any]:
    of_condition, of_body, carry = split_while_inputs(params, inputs)
    while bool(_run_function(params["cond_jaxpr"], [*of_condition, *carry])[0]):
        carry = _run_function(params["body_jaxpr"], [*of_body, *carry])
    return carry


def _run_scan(params, inputs) -> list[Any]:
    consts, carry, scanned = split_scan_inputs(params, inputs)
    num_carry, length = len(carry), params["length"]
    xs = [jnp.asarray(x) for x in scanned]
    steps = range(length)[::-1] if params["reverse"] else range(length)
    collected = []
    for step in steps:
        slices = [jax.lax.dynamic_index_in_dim(x, step, keepdims=False) for x in xs]
        outputs = _run_function(params["jaxpr"], [*consts, *carry, *slices])
        carry = outputs[:num_carry]
        collected.append(outputs[num_carry:])
    if params["reverse"]:
        collected.reverse()
    shapes = params["jaxpr"].out_avals[num_carry:]
    stacked = [
        jnp.stack([ys[index] for ys in collected])
        if collected
        else jnp.zeros((0, *aval.shape), aval.dtype)
        for index, aval in enumerate(shapes)
    ]
    return [*carry, *stacked]
