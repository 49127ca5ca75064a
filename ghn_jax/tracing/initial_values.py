"""Values that a network's own initialiser gives, without compiling the network.

In: the jaxpr of an initialiser, a key and images. Out: some of its outputs, see `execution`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ghn_jax.arrays import PyTree
from ghn_jax.tracing.execution import Execution
from ghn_jax.tracing.jaxprs import take_part


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
    values |= dict(zip(rest, Execution().run(jaxpr, inputs, rest), strict=True))
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
