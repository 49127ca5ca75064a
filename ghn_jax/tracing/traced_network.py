"""Trace a network to its graph, on shapes only: `jax.make_jaxpr`, then the rules.

And the way back: arrays of the graph's tensors to the network's variables.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import TraceContextError
from jax.extend import core

from ghn_jax.configuration.validation import check_positive_int, check_random_key
from ghn_jax.graphs import ArchGraph
from ghn_jax.targets.operations import NATIVE
from ghn_jax.targets.spelling import has_operations
from ghn_jax.tracing import rules  # noqa: F401 (fills the table of rules)
from ghn_jax.tracing.activations import NetworkOnImages
from ghn_jax.tracing.affine import SCALES_OUTPUTS
from ghn_jax.tracing.builder import NO_USE, GraphBuilder
from ghn_jax.tracing.call import TRACING_BATCH_SIZE, Call, read_call
from ghn_jax.tracing.dependence import find_dependence, join_labels
from ghn_jax.tracing.fixed_batch import explain_failure, find_fixed_batch
from ghn_jax.tracing.frontends import NetworkDescription, describe
from ghn_jax.tracing.gradients import find_fixed
from ghn_jax.tracing.initial_values import draw_images
from ghn_jax.tracing.interpreter import EntangledError, interpret
from ghn_jax.tracing.values import Constant, Data, Value, Weight
from ghn_jax.tracing.views import View

NOT_FOLLOWED = "takes part in a way that no rule follows"
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
    images: Any = None,
    *,
    num_classes: int | None = None,
    max_distance: int = 50,
    key: jax.Array | None = None,
    call_args: Sequence[Any] = (),
    call_kwargs: Mapping[str, Any] | None = None,
    **call_arguments: Any,
) -> TracedNetwork:
    """Read the graph of a network off its computation. Nothing is allocated.

    Args:
        network: A network of any library, see `describe`.
        images: A batch: arrays, shapes, or a tree of them. Of shapes, `(4, 32, 32, 3)` is float32.
            None if the network takes it by keyword.
        num_classes: If the last linear layer is as wide, it is the classifier.
        max_distance: Longest distance with a virtual edge.
        key: For the network's own initialiser; None is `jax.random.key(0)`.
        call_args: Further positional arguments of the call. Arrays whose first axis is as long as
            that of the images hold the batch, here and in keyword arguments.
        call_kwargs: Keyword arguments of the call, also those of names that are taken here.
        **call_arguments: Keyword arguments of the call, such as `train=False`.

    Returns:
        The graph and where its tensors lie.

    Raises:
        ValueError: If `network` is not a supported one, its output does not depend on the images,
            or another argument is not as described.
    """
    taken = [
        name for name, value in (("key", key), ("num_classes", num_classes)) if value is not None
    ]
    call = read_call(network, images, call_args, call_kwargs, call_arguments, taken)
    return trace_call(network, call, num_classes, max_distance, key)


def trace_call(
    network: Any,
    call: Call,
    num_classes: int | None = None,
    max_distance: int = 50,
    key: jax.Array | None = None,
) -> TracedNetwork:
    """Read the graph of a network off a call of it; arguments as of `trace`."""
    if num_classes is not None:
        check_positive_int("num_classes", num_classes)
    check_positive_int("max_distance", max_distance)
    key = jax.random.key(0) if key is None else key
    check_random_key("key", key)
    many = call.with_batch(TRACING_BATCH_SIZE)
    # Without functions of their own in the jaxpr, attention and activations are not recognised.
    with jax.disable_jit(False), _natively(network), _without_collector():
        with _errors_of(network, call, many, key):
            description = describe(network, many, key)
        _check_sizes(description, network, call, many, key)
        traced = _read_initialiser(description, call, many, num_classes, max_distance)
        if traced is None:
            with _errors_of(network, call, many, key):
                jaxpr = jax.make_jaxpr(description.apply_fn)(description.variables, many.inputs)
            inputs = [*_known_variables(description), *_known_inputs(many)]
            variables = jaxpr.jaxpr.invars[: len(description.paths)]
            fixed = _find_fixed(description, jaxpr, variables, len(jaxpr.jaxpr.outvars))
            builder = GraphBuilder(TRACING_BATCH_SIZE, fixed, description.find_initial)
            outputs = interpret(builder, jaxpr, inputs)
            _check_batch(jaxpr, outputs, call.batch_size)
            traced = _finish(description, builder, outputs, num_classes, max_distance)
            traced = _check_unused(traced, jaxpr)
    return traced


def read_on_images(
    network: Any, call: Call, traced: TracedNetwork, key: jax.Array | None = None
) -> NetworkOnImages:
    """Return what a network computes on the images of a call, to run it layer by layer.

    Args:
        network: The network.
        call: The call. What it gives as shapes is drawn from a standard normal distribution.
        traced: The network's graph.
        key: As of `trace`.
    """
    key = jax.random.key(0) if key is None else key
    with jax.disable_jit(False), _natively(network):
        description = describe(network, call, key)
        inputs = tuple(draw_images(call.given))
        jaxpr = jax.make_jaxpr(description.apply_fn)(description.variables, inputs)
    names = tuple("/".join(path) for path in traced.description.paths)
    predicted = frozenset(view.parameter for view in traced.views)
    return NetworkOnImages(jaxpr, inputs, names, predicted)


def fill_variables(traced: TracedNetwork, arrays: Sequence[np.ndarray]) -> Any:
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
    with jax.disable_jit(False):  # the initialiser may be traced once more
        values = traced.description.initialize(kept)
    for index, value in zip(kept, values, strict=True):
        leaves[index] = value
    return jax.tree.unflatten(structure, leaves)


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
def _errors_of(network, call, many, key):
    """Let an error speak of the caller's batch: the network fails with it, too, or fixes it."""
    try:
        yield
    except Exception as error:
        try:
            description = describe(network, call, key)
            jax.eval_shape(description.apply_fn, description.variables, call.inputs)
        except TraceContextError as own:  # of NNX
            raise ValueError(
                "network changes state that it closes over, expected a copy for each call, such as"
                " nnx.merge(graphdef, params, state, copy=True) or nnx.clone(module), or a module"
                f" in evaluation mode: {str(own).splitlines()[0]}"
            ) from own
        except Exception as own:
            raise own from None
        raise _fixed_batch_error(call.batch_size, _explain(description, many, call)) from error


def _check_sizes(description, network, call, many, key) -> None:
    """Raise ValueError if parameters have other shapes for another number of images."""
    leaves = jax.tree.leaves(description.variables)
    sizes = {
        size
        for leaf, is_parameter in zip(leaves, description.is_parameter, strict=True)
        for size in leaf.shape
        if is_parameter
    }
    if call.batch_size == many.batch_size or all(size % many.batch_size for size in sizes):
        return
    own = describe(network, call, key)  # a layer may also be as wide as a multiple of the prime
    for path, is_parameter, here, there in zip(
        own.paths, own.is_parameter, jax.tree.leaves(own.variables), leaves, strict=True
    ):
        if is_parameter and here.shape != there.shape:
            problem = f"{'/'.join(path)} has another shape than {here.shape}"
            problem = f"{problem}: {_explain(own, many, call)}"
            raise _fixed_batch_error(call.batch_size, problem)


def _check_batch(jaxpr, outputs, given_size) -> None:
    """Raise ValueError if the network puts a fixed number of images in the place of its batch."""
    if given_size == TRACING_BATCH_SIZE:
        return
    problem = find_fixed_batch(jaxpr, TRACING_BATCH_SIZE, given_size)
    for value, aval in zip(outputs, jaxpr.out_avals, strict=False):
        has_batch = any(size % TRACING_BATCH_SIZE == 0 for size in aval.shape)
        is_fixed = isinstance(value, Data) and aval.shape[:1] == (given_size,) and not has_batch
        if problem is None and is_fixed:
            problem = f"an output has the shape {aval.shape} for any number of images"
    if problem is not None:
        raise _fixed_batch_error(given_size, problem)


def _explain(description, many, call) -> str:
    arguments = description.variables, many.inputs
    return explain_failure(description.apply_fn, arguments, many.batch_size, call.batch_size)


def _fixed_batch_error(given_size, problem) -> ValueError:
    return ValueError(
        f"network runs on the batch of {given_size} that is given, but not on any number N of"
        f" images: {problem}; expected x.shape[0] where {given_size} is written for the batch, such"
        " as x.reshape(x.shape[0], -1). Where it stands for something else, give another number of"
        " images"
    )


def _known_inputs(call: Call) -> list[Value]:
    return [Data((0,)) if is_batch else Constant() for is_batch in call.holds_batch]


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
    description: NetworkDescription,
    call: Call,
    many: Call,
    num_classes: int | None,
    max_distance: int,
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
    inputs: list[Value] = [Constant(), *_known_inputs(many)]
    fixed = _find_fixed(description, description.init_jaxpr, variables, num_outputs)
    builder = GraphBuilder(TRACING_BATCH_SIZE, fixed, description.find_initial)
    try:
        outputs = interpret(builder, description.init_jaxpr, inputs, known)
    except EntangledError:
        return None
    outputs = outputs[:num_outputs]
    if not any(isinstance(x, Data) for x in outputs):
        return None
    _check_batch(description.init_jaxpr, outputs, call.batch_size)
    traced = _finish(description, builder, outputs, num_classes, max_distance)
    return None if NO_USE in traced.kept.values() else traced


def _check_unused(traced: TracedNetwork, jaxpr: Any) -> TracedNetwork:
    """Let the jaxpr decide whether the output depends on parameters that no rule has met."""
    unused = {index for index, reason in traced.kept.items() if reason == NO_USE}
    if not unused:
        return traced
    labels = [
        frozenset({index} if index in unused else ()) for index in range(len(jaxpr.jaxpr.invars))
    ]
    used = join_labels(find_dependence(jaxpr, labels))
    kept = traced.kept | dict.fromkeys(used, NOT_FOLLOWED)
    return dataclasses.replace(traced, kept=kept)


def _finish(
    description: NetworkDescription,
    builder: GraphBuilder,
    outputs: list[Value],
    num_classes: int | None,
    max_distance: int,
) -> TracedNetwork:
    data = [x for x in map(builder.look_up, outputs) if isinstance(x, Data)]
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
