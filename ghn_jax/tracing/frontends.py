"""Networks of any library as one thing: a function of variables and images.

In: a Flax module (linen or NNX), a Haiku transform, an Equinox module or a function of parameters.
Out: a `NetworkDescription`. Haiku and Equinox are imported only if the network is theirs.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from ghn_jax.arrays import PyTree, TreePath
from ghn_jax.configuration.validation import describe_value
from ghn_jax.targets.operations import NATIVE
from ghn_jax.targets.spelling import with_operations
from ghn_jax.tracing.call import BATCH_SIZE, Call


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkDescription:
    """A network as the tracer sees it, from any library.

    Attributes:
        apply_fn: Traceable function that maps (variables, inputs of the call) to outputs.
        variables: Tree of the shapes and dtypes of parameters and state.
        paths: Paths of the leaves of `variables`, for parameters within their collection.
        is_parameter: Whether each leaf is a parameter.
        initialize: Maps indices of leaves to their values, by the caller's initialiser.
        finish: Maps filled variables to the caller's kinds of network and of variables.
        init_jaxpr: If the initialiser also runs the network: a jaxpr of (key, inputs) -> (leaves of
            the outputs, leaves of `variables`), so that one tracing gives shapes and computation.
        find_initial: Maps the index of a leaf to its value, None if that has to be computed.
    """

    apply_fn: Callable[[PyTree, PyTree], PyTree]
    variables: PyTree
    paths: tuple[TreePath, ...]
    is_parameter: tuple[bool, ...]
    initialize: Callable[[Sequence[int]], list[Any]]
    finish: Callable[[PyTree], tuple[Any, PyTree]]
    init_jaxpr: Any = None
    find_initial: Callable[[int], Any] = lambda index: None


def describe(network: Any, call: Call, key: jax.Array) -> NetworkDescription:
    """Describe a network.

    Args:
        network: A `flax.linen.Module`, `flax.nnx.Module`, `haiku.Transformed` (with or without
            state), `equinox.Module` of a single image, or a function `apply(params, images)`.
        call: What it is called with. A function needs `params` in `call.own`, a tree of arrays or
            shapes; an Equinox module with state needs `state` there.
        key: For the caller's initialiser.

    Returns:
        The description.

    Raises:
        ValueError: If `network` is of another kind, or `params` is missing.
    """
    description = _describe(network, call, key)
    leaves = jax.tree.leaves(description.variables)
    # Integers and booleans are indices and masks.
    is_parameter = tuple(
        flag and jnp.issubdtype(leaf.dtype, jnp.inexact)
        for flag, leaf in zip(description.is_parameter, leaves, strict=True)
    )
    return dataclasses.replace(description, is_parameter=is_parameter)


def _describe(network, call, key) -> NetworkDescription:
    if isinstance(network, nn.Module):
        return _describe_linen(network, call, key)
    if isinstance(network, nnx.Module):
        return _describe_nnx(network, call)
    library = type(network).__module__.split(".")[0]
    if library == "haiku":
        return _describe_haiku(network, call, key)
    equinox = sys.modules.get("equinox")  # loaded if the network is one of its modules
    if equinox is not None and isinstance(network, equinox.Module):
        return _describe_equinox(equinox, network, call)
    shown = describe_value(network)
    if isinstance(network, type):
        raise ValueError(f"network is {shown}, expected an instance, not the class")
    if callable(network) and "params" in call.own:
        return _describe_function(network, call)
    if callable(network):
        raise ValueError(
            f"params is missing: {shown} is a function, which is predicted for a tree of arrays or"
            " shapes given as params=..."
        )
    raise ValueError(
        f"network is {shown}, expected a Flax, NNX or Equinox module, a Haiku transform or a"
        " function apply(params, images)"
    )


def _describe_linen(module, call, key) -> NetworkDescription:
    read = with_operations(module, NATIVE)

    def init(key, inputs):
        args, kwargs = call.bind(inputs)
        return read.init_with_output(key, *args, **kwargs)

    jaxpr, (outputs, variables) = jax.make_jaxpr(init, return_shape=True)(key, call.inputs)
    num_outputs = len(jax.tree.leaves(outputs))
    collections = [name for name in variables if name != "params"]

    def apply_fn(variables, inputs):
        rngs = {"params": key, "dropout": key}
        args, kwargs = call.bind(inputs)
        run = functools.partial(read.apply, variables, rngs=rngs, mutable=collections or False)
        outputs = run(*args, **kwargs)
        return outputs[0] if collections else outputs

    paths, is_parameter = _split_collections(variables)

    def initialize(indices):
        shifted = [num_outputs + index for index in indices]
        return _evaluate(init, jaxpr, shifted, key, call.inputs)

    return NetworkDescription(
        apply_fn,
        variables,
        paths,
        is_parameter,
        initialize,
        lambda variables: (module, variables),
        jaxpr,
        lambda index: _constant(jaxpr.jaxpr, num_outputs + index),
    )


def _describe_nnx(module, call) -> NetworkDescription:
    graph_definition, params, state = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    variables = (params, state)

    def apply_fn(variables, inputs):
        args, kwargs = call.bind(inputs)
        return nnx.merge(graph_definition, *variables)(*args, **kwargs)

    def finish(variables):
        network = nnx.merge(graph_definition, *variables)
        return network, nnx.state(network)

    is_parameter = _positions((params, True), (state, False))
    return _from_values(apply_fn, variables, is_parameter, finish, skip=1)


def _describe_haiku(transform, call, key) -> NetworkDescription:
    def init(key, inputs):
        args, kwargs = call.bind(inputs)
        return transform.init(key, *args, **kwargs)

    jaxpr, variables = jax.make_jaxpr(init, return_shape=True)(key, call.inputs)
    has_state = type(transform).__name__ == "TransformedWithState"

    def apply_fn(variables, inputs):
        args, kwargs = call.bind(inputs)
        if has_state:
            return transform.apply(*variables, key, *args, **kwargs)[0]
        return transform.apply(variables, key, *args, **kwargs)

    parts = variables if has_state else (variables,)
    is_parameter = _positions(*((part, index == 0) for index, part in enumerate(parts)))
    paths = _paths(variables, skip=1 if has_state else 0)

    def initialize(indices):
        return _evaluate(init, jaxpr, indices, key, call.inputs)

    return NetworkDescription(
        apply_fn,
        variables,
        paths,
        is_parameter,
        initialize,
        lambda v: (transform, v),
        find_initial=lambda index: _constant(jaxpr.jaxpr, index),
    )


def _describe_equinox(equinox, module, call) -> NetworkDescription:
    params, static = equinox.partition(module, equinox.is_inexact_array)
    has_state = "state" in call.own
    state = call.own.get("state")
    axes = tuple(0 if is_batch else None for is_batch in call.holds_batch)

    def apply_fn(variables, inputs):
        params, state = variables
        network = equinox.combine(params, static)
        extra = {"state": state} if has_state else {}

        def call_one(inputs):
            args, kwargs = call.bind(inputs)
            return network(*args, **extra, **kwargs)

        outputs = jax.vmap(call_one, in_axes=(axes,), axis_name="batch")(inputs)
        return outputs[0] if has_state else outputs

    def finish(variables):
        network = equinox.combine(variables[0], static)
        return network, variables if has_state else variables[0]

    is_parameter = _positions((params, True), (state, False))
    return _from_values(apply_fn, (params, state), is_parameter, finish, skip=1)


def _describe_function(function, call) -> NetworkDescription:
    variables = call.own["params"]

    def apply_fn(variables, inputs):
        args, kwargs = call.bind(inputs)
        return function(variables, *args, **kwargs)

    has_collections = isinstance(variables, Mapping) and "params" in variables
    skip = 0
    is_parameter: tuple[bool, ...] | None = None
    if has_collections:
        paths, is_parameter = _split_collections(variables)
    else:
        is_parameter = _positions((variables, True))
        if any(isinstance(x, nnx.Variable) for x in _nnx_leaves(variables)):
            # A tree of nnx.split, whose Variables say what they are.
            is_parameter = tuple(
                not isinstance(x, nnx.Variable) or isinstance(x, nnx.Param)
                for x in _nnx_leaves(variables)
                for _ in jax.tree.leaves(x)
            )
    network = _from_values(apply_fn, variables, is_parameter, lambda v: (function, v), skip)
    return dataclasses.replace(network, paths=paths) if has_collections else network


def _from_values(apply_fn, variables, is_parameter, finish, skip) -> NetworkDescription:
    """A network whose variables exist already: what is not predicted keeps its value."""
    leaves = jax.tree.leaves(variables)
    paths = _paths(variables, skip)

    def initialize(indices):
        abstract = [i for i in indices if isinstance(leaves[i], jax.ShapeDtypeStruct)]
        if abstract:
            names = ", ".join("/".join(paths[i]) for i in abstract)
            raise ValueError(
                f"{names} cannot be predicted and the network gives only shapes, expected arrays"
            )
        return [leaves[i] for i in indices]

    return NetworkDescription(
        apply_fn,
        _as_shapes(variables),
        paths,
        is_parameter,
        initialize,
        finish,
        find_initial=lambda i: None if isinstance(leaves[i], jax.ShapeDtypeStruct) else leaves[i],
    )


def _nnx_leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _as_shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _positions(*parts: tuple[PyTree, bool]) -> tuple[bool, ...]:
    return tuple(flag for tree, flag in parts for _ in jax.tree.leaves(tree))


def _split_collections(variables):
    """Flax's paths: those of parameters begin within the collection `params`."""
    full = _paths(variables, 0)
    is_parameter = tuple(path[0] == "params" for path in full)
    paths = tuple(p[1:] if flag else p for p, flag in zip(full, is_parameter, strict=True))
    return paths, is_parameter


def _paths(tree, skip: int) -> tuple[TreePath, ...]:
    paths = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if len(names) > 1 and names[-1] == "value" and isinstance(tree, tuple | nnx.State):
            names.pop()  # of an NNX variable
        paths.append(tuple(names[skip:]))
    return tuple(paths)


def _evaluate(init, jaxpr, indices, key, images):
    """Outputs of an initialiser; constants, as most state is, without a compilation."""
    values = {index: _constant(jaxpr.jaxpr, index) for index in indices}
    rest = [index for index, value in values.items() if value is None]
    own = _own_computation(jaxpr, rest)
    if own is not None:
        values |= dict(zip(rest, core.jaxpr_as_fun(own)(key), strict=True))
    elif rest:

        def select(key):
            # XLA leaves out what these outputs do not need, mostly the network and its images. For
            # state that is computed from images (Haiku's moving averages), two are enough.
            zeros = jax.tree.map(_few_zeros, images)
            leaves = jax.tree.leaves(init(key, zeros))
            return [leaves[index] for index in rest]

        values |= dict(zip(rest, jax.jit(select)(key), strict=True))
    return [values[index] for index in indices]


def _few_zeros(x):
    is_batch = bool(x.shape) and x.shape[0] == BATCH_SIZE
    return jnp.zeros((2, *x.shape[1:]) if is_batch else x.shape, x.dtype)


def _own_computation(jaxpr, indices):
    """What computes some outputs of an initialiser from the key alone; None if images take part.

    It is run primitive by primitive, which the next network with such parameters shares; compiled
    as a whole it would be compiled anew for each network.
    """
    inner = jaxpr.jaxpr
    outvars = [inner.outvars[index] for index in indices]
    needed, eqns = set(outvars), []
    for eqn in reversed(inner.eqns):
        if any(var in needed for var in eqn.outvars):
            eqns.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, core.Literal))
    key, *images = inner.invars
    if not indices or any(var in needed for var in images):
        return None
    debug_info = inner.debug_info.with_unknown_names()
    own = inner.replace(invars=[key], outvars=outvars, eqns=eqns[::-1], debug_info=debug_info)
    return core.ClosedJaxpr(own, jaxpr.consts)


def _constant(jaxpr: Any, index: int) -> np.ndarray | None:
    """Return an output's array if it is filled with one literal, else None."""
    var = jaxpr.outvars[index]
    if isinstance(var, core.Literal):
        aval: Any = var.aval
        return np.asarray(var.val, aval.dtype)
    eqn = next((eqn for eqn in reversed(jaxpr.eqns) if var in eqn.outvars), None)
    if eqn is None:
        return None
    if eqn.primitive.name in ("jit", "pjit"):
        return _constant(eqn.params["jaxpr"].jaxpr, eqn.outvars.index(var))
    literal = eqn.invars[0] if len(eqn.invars) == 1 else None
    if eqn.primitive.name != "broadcast_in_dim" or not isinstance(literal, core.Literal):
        return None
    return np.full(var.aval.shape, literal.val, var.aval.dtype)
