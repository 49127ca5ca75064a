"""Networks of any library as one thing: a function of variables and images.

In: a Flax module (linen or NNX), a Haiku transform, an Equinox module or a function of parameters.
Out: a `NetworkDescription`. Haiku and Equinox are imported only if the network is theirs.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from ghn_jax.arrays import PyTree, TreePath
from ghn_jax.configuration.validation import describe_value
from ghn_jax.targets.operations import NATIVE
from ghn_jax.targets.spelling import with_operations
from ghn_jax.tracing.initial_values import compute_outputs, draw_images, find_constant, needs_inputs


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkDescription:
    """A network as the tracer sees it, from any library.

    Attributes:
        apply_fn: Traceable function that maps (variables, images) to outputs.
        variables: Tree of the shapes and dtypes of parameters and state.
        paths: Paths of the leaves of `variables`, for parameters within their collection.
        is_parameter: Whether each leaf is a parameter.
        initialize: Maps indices of leaves to their values, by the caller's initialiser.
        finish: Maps filled variables to the caller's kinds of network and of variables.
        init_jaxpr: If the initialiser also runs the network: a jaxpr of (key, images) -> (leaves of
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


def describe(
    network: Any,
    images: PyTree,
    key: jax.Array,
    arguments: Mapping[str, Any],
    given: PyTree = None,
) -> NetworkDescription:
    """Describe a network.

    Args:
        network: A `flax.linen.Module`, `flax.nnx.Module`, `haiku.Transformed` (with or without
            state), `equinox.Module` of a single image, or a function `apply(params, images)`.
        images: Shapes of a batch.
        key: For the caller's initialiser.
        arguments: Keyword arguments of the call. A function needs `params`, a tree of arrays or
            shapes; an Equinox module with state needs `state`.
        given: The images, or their shapes, on which the network's own initialiser runs where its
            values depend on them; None is `images`. Of mere shapes, images are drawn.

    Returns:
        The description.

    Raises:
        ValueError: If `network` is of another kind, or `params` is missing.
    """
    description = _describe(network, images, key, arguments, images if given is None else given)
    leaves = jax.tree.leaves(description.variables)
    # Integers and booleans are indices and masks.
    is_parameter = tuple(
        flag and jnp.issubdtype(leaf.dtype, jnp.inexact)
        for flag, leaf in zip(description.is_parameter, leaves, strict=True)
    )
    return dataclasses.replace(description, is_parameter=is_parameter)


def _describe(network, images, key, arguments, given) -> NetworkDescription:
    if isinstance(network, nn.Module):
        return _describe_linen(network, images, key, arguments, given)
    if isinstance(network, nnx.Module):
        return _describe_nnx(network, arguments)
    library = type(network).__module__.split(".")[0]
    if library == "haiku":
        return _describe_haiku(network, key, arguments, given)
    equinox = sys.modules.get("equinox")  # loaded if the network is one of its modules
    if equinox is not None and isinstance(network, equinox.Module):
        return _describe_equinox(equinox, network, dict(arguments))
    shown = describe_value(network)
    if isinstance(network, type):
        raise ValueError(f"network is {shown}, expected an instance, not the class")
    if callable(network) and "params" in arguments:
        return _describe_function(network, dict(arguments))
    if callable(network):
        raise ValueError(
            f"params is missing: {shown} is a function, which is predicted for a tree of arrays or"
            " shapes given as params=..."
        )
    raise ValueError(
        f"network is {shown}, expected a Flax, NNX or Equinox module, a Haiku transform or a"
        " function apply(params, images)"
    )


def _describe_linen(module, images, key, arguments, given) -> NetworkDescription:
    read = with_operations(module, NATIVE)

    def init(key, images):
        return read.init_with_output(key, images, **arguments)

    jaxpr, (outputs, variables) = jax.make_jaxpr(init, return_shape=True)(key, images)
    num_outputs = len(jax.tree.leaves(outputs))
    collections = [name for name in variables if name != "params"]

    def apply_fn(variables, images):
        rngs = {"params": key, "dropout": key}
        outputs = read.apply(
            variables, images, rngs=rngs, mutable=collections or False, **arguments
        )
        return outputs[0] if collections else outputs

    paths, is_parameter = _split_collections(variables)

    def initialize(indices):
        return _evaluate_initial(init, jaxpr, images, num_outputs, indices, key, given)

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


def _describe_nnx(module, arguments) -> NetworkDescription:
    graph_definition, params, state = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    variables = (params, state)

    def apply_fn(variables, images):
        return nnx.merge(graph_definition, *variables)(images, **arguments)

    def finish(variables):
        network = nnx.merge(graph_definition, *variables)
        return network, nnx.state(network)

    is_parameter = _positions((params, True), (state, False))
    return _from_values(apply_fn, variables, is_parameter, finish, skip=1)


def _describe_haiku(transform, key, arguments, given) -> NetworkDescription:
    # On the images given: its state may be computed from them.
    jaxpr, variables = _trace_initialiser(transform.init, key, given, arguments)
    has_state = type(transform).__name__ == "TransformedWithState"

    def apply_fn(variables, images):
        if has_state:
            return transform.apply(*variables, key, images, **arguments)[0]
        return transform.apply(variables, key, images, **arguments)

    parts = variables if has_state else (variables,)
    is_parameter = _positions(*((part, index == 0) for index, part in enumerate(parts)))
    paths = _paths(variables, skip=1 if has_state else 0)

    def initialize(indices):
        needed = needs_inputs(jaxpr, indices, range(1, len(jaxpr.jaxpr.invars)))
        images = jax.tree.leaves(draw_images(given) if needed else given)
        return compute_outputs(jaxpr, indices, [key, *images])

    return NetworkDescription(
        apply_fn,
        variables,
        paths,
        is_parameter,
        initialize,
        lambda v: (transform, v),
        find_initial=lambda index: find_constant(jaxpr.jaxpr, index),
    )


def _describe_equinox(equinox, module, arguments) -> NetworkDescription:
    params, static = equinox.partition(module, equinox.is_inexact_array)
    has_state = "state" in arguments
    state = arguments.pop("state", None)

    def apply_fn(variables, images):
        params, state = variables
        network = equinox.combine(params, static)
        extra = {"state": state} if has_state else {}
        call = jax.vmap(lambda x: network(x, **extra, **arguments), axis_name="batch")
        outputs = call(images)
        return outputs[0] if has_state else outputs

    def finish(variables):
        network = equinox.combine(variables[0], static)
        return network, variables if has_state else variables[0]

    is_parameter = _positions((params, True), (state, False))
    return _from_values(apply_fn, (params, state), is_parameter, finish, skip=1)


def _describe_function(function, arguments) -> NetworkDescription:
    variables = arguments.pop("params")

    def apply_fn(variables, images):
        return function(variables, images, **arguments)

    has_collections = isinstance(variables, Mapping) and "params" in variables
    skip = 0
    is_parameter: tuple[bool, ...] | None = None
    if has_collections:
        paths, is_parameter = _split_collections(variables)
    else:
        is_parameter = _positions((variables, True))
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
        if len(names) > 1 and names[-1] == "value" and isinstance(tree, tuple):
            names.pop()  # of an NNX variable
        paths.append(tuple(names[skip:]))
    return tuple(paths)


def _evaluate_initial(init, jaxpr, shapes, num_outputs, indices, key, given):
    """Leaves of the variables by the network's own initialiser, on the images that were given.

    `jaxpr` is that of a batch of `shapes`; what does not depend on images is read off it.
    """
    avals = jaxpr.out_avals[num_outputs:]
    batch_sizes = {x.shape[0] for x in jax.tree.leaves(shapes)}
    num_inputs = len(jaxpr.jaxpr.invars)
    on_images = [
        index
        for index in indices
        if needs_inputs(jaxpr, [num_outputs + index], range(1, num_inputs))
        or any(size % batch == 0 for size in avals[index].shape for batch in batch_sizes if size)
    ]
    others = [index for index in indices if index not in on_images]
    shifted = [num_outputs + index for index in others]
    values = compute_outputs(jaxpr, shifted, [key, *[None] * (num_inputs - 1)])
    found = dict(zip(others, values, strict=True))
    if on_images:
        images = draw_images(given)
        shifted = [num_outputs + index for index in on_images]
        jaxpr = jax.make_jaxpr(init)(key, images)
        values = compute_outputs(jaxpr, shifted, [key, *jax.tree.leaves(images)])
        found |= dict(zip(on_images, values, strict=True))
    return [found[index] for index in indices]


def _trace_initialiser(init, key, images, arguments):
    """Return the jaxpr and the shapes of a function; a second call of the same traces nothing.

    As `jax.jit` does, that takes the function for the same if it is the same object.
    """
    shapes = _as_shapes(images)
    if all(isinstance(x, bool | int | float | str | None) for x in arguments.values()):
        traced = jax.jit(init, static_argnames=tuple(arguments)).trace(key, shapes, **arguments)
        return traced.jaxpr, _as_shapes(traced.out_info)
    function = lambda key, images: init(key, images, **arguments)  # noqa: E731
    return jax.make_jaxpr(function, return_shape=True)(key, shapes)
