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

from ghn_jax.arrays import PyTree, TreePath
from ghn_jax.configuration.validation import describe_value
from ghn_jax.targets.operations import NATIVE
from ghn_jax.targets.spelling import with_operations
from ghn_jax.tracing.call import Call
from ghn_jax.tracing.initial_values import compute_outputs, draw_images, find_constant, needs_inputs


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
        return _evaluate_initial(init, jaxpr, is_parameter, indices, key, call)

    return NetworkDescription(
        apply_fn,
        variables,
        paths,
        is_parameter,
        initialize,
        lambda variables: (module, variables),
        jaxpr,
        lambda index: find_constant(jaxpr.jaxpr, num_outputs + index),
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
    # On the images given: its state may be computed from them.
    jaxpr, variables = _trace_initialiser(transform.init, key, call)
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
        needed = needs_inputs(jaxpr, indices, range(1, len(jaxpr.jaxpr.invars)))
        inputs = draw_images(call.given) if needed else call.given
        return compute_outputs(jaxpr, indices, [key, *inputs])

    return NetworkDescription(
        apply_fn,
        variables,
        paths,
        is_parameter,
        initialize,
        lambda v: (transform, v),
        find_initial=lambda index: find_constant(jaxpr.jaxpr, index),
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

    finish = lambda variables: (function, variables)  # noqa: E731
    if isinstance(variables, Mapping) and "params" in variables:
        paths, is_parameter = _split_collections(variables)
        network = _from_values(apply_fn, variables, is_parameter, finish, skip=0)
        return dataclasses.replace(network, paths=paths)
    # The Variables in a tree of nnx.split say what they are.
    is_parameter = tuple(
        not isinstance(x, nnx.Variable) or isinstance(x, nnx.Param)
        for x in jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nnx.Variable))
        for _ in jax.tree.leaves(x)
    )
    return _from_values(apply_fn, variables, is_parameter, finish, skip=0)


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


def _evaluate_initial(init, jaxpr, is_parameter, indices, key, call):
    """Leaves of the variables by the network's own initialiser, on the images that were given.

    `jaxpr` is that of another number of images; what does not depend on images is read off it, and
    so are arrays of one number with as many rows as images, such as caches.
    """
    num_outputs = len(jaxpr.out_avals) - len(is_parameter)
    num_inputs = len(jaxpr.jaxpr.invars)
    has_rows = [
        any(size and size % call.batch_size == 0 for size in aval.shape)
        for aval in jaxpr.out_avals[num_outputs:]
    ]
    # Where a layer is as wide as a multiple of the prime, its state may be, too.
    is_clear = not any(rows for rows, flag in zip(has_rows, is_parameter, strict=True) if flag)
    found: dict[int, Any] = {}
    on_images, others = [], []
    for index in indices:
        constant = find_constant(jaxpr.jaxpr, num_outputs + index) if has_rows[index] else None
        if constant is not None and is_clear:
            found[index] = _with_rows(constant, call)
        elif has_rows[index] or needs_inputs(jaxpr, [num_outputs + index], range(1, num_inputs)):
            on_images.append(index)
        else:
            others.append(index)
    shifted = [num_outputs + index for index in others]
    values = compute_outputs(jaxpr, shifted, [key, *[None] * (num_inputs - 1)])
    found |= dict(zip(others, values, strict=True))
    if on_images:
        inputs = draw_images(call.given)
        shifted = [num_outputs + index for index in on_images]
        jaxpr = jax.make_jaxpr(init)(key, inputs)
        values = compute_outputs(jaxpr, shifted, [key, *inputs])
        found |= dict(zip(on_images, values, strict=True))
    return [found[index] for index in indices]


def _with_rows(constant, call):
    """The array of one number for as many images as were given."""
    pairs = zip(call.given, call.holds_batch, strict=True)
    given_size = next(x.shape[0] for x, is_batch in pairs if is_batch)
    counts = [divmod(size, call.batch_size) for size in constant.shape]
    shape = [
        size if rest else count * given_size
        for size, (count, rest) in zip(constant.shape, counts, strict=True)
    ]
    return np.full(shape, constant.flat[0] if constant.size else 0, constant.dtype)


def _trace_initialiser(init, key, call):
    """Return the jaxpr and the shapes of a function; a second call of the same traces nothing.

    As `jax.jit` does, that takes the function for the same if it is the same object.
    """
    args, kwargs = call.bind(_as_shapes(call.given))
    fixed_places = [place for place, x in enumerate(args, start=1) if _is_plain(x)]
    fixed_names = [name for name, x in kwargs.items() if _is_plain(x)]
    others = [x for x in (*args, *kwargs.values()) if not _is_plain(x)]
    if all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(others)):
        jitted = jax.jit(init, static_argnums=fixed_places, static_argnames=fixed_names)
        traced = jitted.trace(key, *args, **kwargs)
        return traced.jaxpr, _as_shapes(traced.out_info)

    def function(key, inputs):
        args, kwargs = call.bind(inputs)
        return init(key, *args, **kwargs)

    return jax.make_jaxpr(function, return_shape=True)(key, _as_shapes(call.given))


def _is_plain(x):
    return isinstance(x, bool | int | float | str | None)
