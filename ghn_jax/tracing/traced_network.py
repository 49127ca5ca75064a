"""Trace a network to its graph, on shapes only: `jax.make_jaxpr`, then the rules.

And the way back: arrays of the graph's tensors to the network's variables.
"""

import contextlib
import dataclasses
import gc
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ghn_jax.configuration.validation import check_positive_int, check_random_key
from ghn_jax.graphs import ArchGraph
from ghn_jax.targets.operations import NATIVE
from ghn_jax.targets.spelling import has_operations
from ghn_jax.tracing import rules  # noqa: F401 (fills the table of rules)
from ghn_jax.tracing.affine import SCALES_OUTPUTS
from ghn_jax.tracing.builder import NO_USE, GraphBuilder
from ghn_jax.tracing.frontends import NetworkDescription, describe
from ghn_jax.tracing.gradients import find_fixed
from ghn_jax.tracing.interpreter import EntangledError, interpret
from ghn_jax.tracing.values import Constant, Data, Value, Weight
from ghn_jax.tracing.views import View

# A prime that no layer is a multiple of: an axis holds the batch if its size is divisible by it,
# whatever reshapes and transposes it went through.
_BATCH_SIZE = 1009
STATE = "no parameter but state: kept as initialised"
COMPLEX = "is complex, and a GHN predicts real numbers"


@dataclasses.dataclass(frozen=True, eq=False)
class TracedNetwork:
    """A network and the graph of its computation.

    Attributes:
        description: The network.
        graph: The graph, from which a GHN predicts.
        views: For every tensor of the graph, which elements of which leaf of the variables it is,
            or what function of them.
        kept: For every leaf of the variables that cannot be predicted, the reason.
    """

    description: NetworkDescription
    graph: ArchGraph
    views: tuple[View, ...]
    kept: dict[int, str]


def trace(
    network: Any,
    images: Any,
    *,
    num_classes: int | None = None,
    max_distance: int = 50,
    key: jax.Array | None = None,
    **call_arguments: Any,
) -> TracedNetwork:
    """Read the graph of a network off its computation. Nothing is allocated.

    Args:
        network: A network of any library, see `describe`.
        images: A batch, arrays or shapes; only the shape after the first axis matters.
        num_classes: If the last linear layer is as wide, it is the classifier.
        max_distance: Longest distance with a virtual edge.
        key: For the network's own initialiser; None is `jax.random.key(0)`.
        **call_arguments: Keyword arguments of the call, such as `train=False`.

    Returns:
        The graph and where its tensors lie.

    Raises:
        ValueError: If `network` is not a supported one, its output does not depend on the images,
            or another argument is not as described.
    """
    if num_classes is not None:
        check_positive_int("num_classes", num_classes)
    check_positive_int("max_distance", max_distance)
    key = jax.random.key(0) if key is None else key
    check_random_key("key", key)
    shapes = jax.tree.map(_as_batch, images)
    if not jax.tree.leaves(shapes):
        raise ValueError(f"images is {images!r}, expected arrays or their shapes")
    with _natively(network), _batch_in_errors(), _without_collector():
        description = describe(network, shapes, key, call_arguments, images)
        traced = _read_initialiser(description, num_classes, max_distance)
        if traced is None:
            jaxpr = jax.make_jaxpr(description.apply_fn)(description.variables, shapes)
            num_images = len(jax.tree.leaves(shapes))
            inputs = [*_known_variables(description), *[Data((0,))] * num_images]
            variables = jaxpr.jaxpr.invars[: len(description.paths)]
            fixed = _find_fixed(description, jaxpr, variables, len(jaxpr.jaxpr.outvars))
            builder = GraphBuilder(_BATCH_SIZE, fixed, description.find_initial)
            outputs = interpret(builder, jaxpr, inputs)
            traced = _finish(description, builder, outputs, num_classes, max_distance)
    return traced


def fill_variables(traced: TracedNetwork, arrays: list[np.ndarray]) -> Any:
    """Put predicted arrays where the network looks for them, and initial values elsewhere.

    Args:
        traced: A traced network.
        arrays: Arrays with the order and shapes of its graph's tensors.

    Returns:
        The tree of the network's variables.
    """
    shapes, structure = jax.tree.flatten(traced.description.variables)
    leaves: list[Any] = [None] * len(shapes)
    for view, array in zip(traced.views, arrays, strict=True):
        index, shape = view.parameter, shapes[view.parameter]
        if view.is_whole:
            leaves[index] = array.astype(shape.dtype, copy=False)
            continue
        if leaves[index] is None:
            leaves[index] = np.empty(shape.shape, shape.dtype)
        view.restore(leaves[index], array)
    kept = list(traced.kept)
    for index, value in zip(kept, traced.description.initialize(kept), strict=True):
        leaves[index] = value
    return jax.tree.unflatten(structure, leaves)


def _as_batch(x):
    if not getattr(x, "shape", ()) or not hasattr(x, "dtype"):
        raise ValueError(
            f"images has a leaf {x!r}, expected arrays with a batch axis, or their shapes:"
            " jax.ShapeDtypeStruct"
        )
    return jax.ShapeDtypeStruct((_BATCH_SIZE, *x.shape[1:]), x.dtype)


def _natively(network):
    """Read modules of ours as the operations that their graph has, however deep they lie."""
    # One that is the network itself is described so: calls cost less that are not intercepted.
    is_ours = isinstance(network, nn.Module) and has_operations(network)
    return contextlib.nullcontext() if is_ours else nn.intercept_methods(_call_natively)


def _call_natively(next_method, args, kwargs, context):
    module = context.module
    if not has_operations(module):
        return next_method(*args, **kwargs)
    # Flax freezes modules. This one may be the caller's own, bound to variables.
    chosen = module.operations
    object.__setattr__(module, "operations", NATIVE)
    try:
        return next_method(*args, **kwargs)
    finally:
        object.__setattr__(module, "operations", chosen)


@contextlib.contextmanager
def _without_collector():
    """Stop Python's cyclic garbage collector: a tracing makes 10^5 objects that all stay in use.

    Looking through them in vain would double the time of every third tracing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _batch_in_errors():
    try:
        yield
    except Exception as error:
        error.add_note(f"ghn_jax traced the network with a batch of {_BATCH_SIZE} images.")
        raise


def _known_variables(description: NetworkDescription) -> list[Value]:
    leaves, flags = jax.tree.leaves(description.variables), description.is_parameter
    return [
        Weight(frozenset({index}), (View(index, tuple(leaf.shape)),))
        if is_parameter
        else Constant(is_state=True)
        for index, (leaf, is_parameter) in enumerate(zip(leaves, flags, strict=True))
    ]


def _find_fixed(description, jaxpr, variables, num_outputs) -> dict[int, str]:
    """Reasons not to predict parameters whatever they do."""
    indices = [index for index, flag in enumerate(description.is_parameter) if flag]
    found = find_fixed(jaxpr, [variables[index] for index in indices], num_outputs)
    fixed = {indices[position]: reason for position, reason in found.items()}
    leaves = jax.tree.leaves(description.variables)
    for index in indices:
        if jnp.issubdtype(leaves[index].dtype, jnp.complexfloating):
            fixed.setdefault(index, COMPLEX)
    return fixed


def _read_initialiser(
    description: NetworkDescription, num_classes: int | None, max_distance: int
) -> TracedNetwork | None:
    """Read the graph off the initialiser, which runs the network on the variables it makes.

    That spares to trace the network twice. None where it does not tell: variables are made inside
    of a transformation such as scan, or the network does less while it is initialised.
    """
    if description.init_jaxpr is None:
        return None
    jaxpr = description.init_jaxpr.jaxpr
    values = _known_variables(description)
    num_outputs = len(jaxpr.outvars) - len(values)
    variables = jaxpr.outvars[num_outputs:]
    if any(isinstance(var, core.Literal) for var in variables):
        return None
    known = dict(zip(variables, values, strict=True))
    if len(known) < len(values):
        return None
    inputs: list[Value] = [Constant(), *[Data((0,))] * (len(jaxpr.invars) - 1)]
    fixed = _find_fixed(description, description.init_jaxpr, variables, num_outputs)
    builder = GraphBuilder(_BATCH_SIZE, fixed, description.find_initial)
    try:
        outputs = interpret(builder, description.init_jaxpr, inputs, known)
    except EntangledError:
        return None
    outputs = outputs[:num_outputs]
    if not any(isinstance(x, Data) for x in outputs):
        return None
    traced = _finish(description, builder, outputs, num_classes, max_distance)
    return None if NO_USE in traced.kept.values() else traced


def _finish(
    description: NetworkDescription,
    builder: GraphBuilder,
    outputs: list[Value],
    num_classes: int | None,
    max_distance: int,
) -> TracedNetwork:
    data = [x for x in outputs if isinstance(x, Data)]
    for x in data:
        builder.specify(x, SCALES_OUTPUTS)
    ends = [builder.node_of(x) for x in data]
    if not ends:
        raise ValueError("the network's output does not depend on images, expected one that does")
    built = builder.finish(
        ends,
        description.paths,
        [tuple(leaf.shape) for leaf in jax.tree.leaves(description.variables)],
        num_classes,
        max_distance,
    )
    kept = {
        index: reason if description.is_parameter[index] or reason != NO_USE else STATE
        for index, reason in built.kept.items()
    }
    return TracedNetwork(description, built.graph, built.views, kept)
