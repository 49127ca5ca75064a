"""What a network is called with: which of its inputs hold the batch, and what is no input.

In: images, further arguments of the call, and names that the public call takes for itself. Out: a
`Call`, whose inputs the tracer replaces.
"""

import dataclasses
import inspect
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ghn_jax.arrays import PyTree
from ghn_jax.configuration.validation import check_instance, describe_value
from ghn_jax.tracing.initial_values import draw_images

# A prime that no layer is a multiple of: an axis holds the batch if its size is divisible by it,
# whatever reshapes and transposes it went through.
TRACING_BATCH_SIZE = 1009
_HINT = "arrays with a batch axis, or their shapes: jax.ShapeDtypeStruct"


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """The call of a network.

    Attributes:
        inputs: Shapes of the arrays that are traced: of the images, of what has their batch, and of
            what is given as a shape only.
        holds_batch: Whether the first axis of each input is the batch.
        own: The arguments `params` and `state`, where they are not the network's.
    """

    inputs: tuple[jax.ShapeDtypeStruct, ...]
    holds_batch: tuple[bool, ...]
    own: Mapping[str, Any]
    _leaves: tuple[Any, ...]
    _positions: tuple[int, ...]
    _structure: Any

    @property
    def batch_size(self) -> int:
        """Number of images."""
        pairs = zip(self.inputs, self.holds_batch, strict=True)
        return next(x.shape[0] for x, is_batch in pairs if is_batch)

    @property
    def given(self) -> tuple[Any, ...]:
        """What the caller gave for each input: an array, or a shape."""
        return tuple(self._leaves[position] for position in self._positions)

    def with_batch(self, size: int) -> "Call":
        """The same call with another number of images."""
        inputs = tuple(
            jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) if is_batch else x
            for x, is_batch in zip(self.inputs, self.holds_batch, strict=True)
        )
        return dataclasses.replace(self, inputs=inputs)

    def bind(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the call with these inputs.

        NNX objects, such as `rngs`, are copies: a call changes their counters, and those of the
        caller stay.
        """
        leaves = [nnx.clone(x) if _is_nnx(x) else x for x in self._leaves]
        for position, value in zip(self._positions, inputs, strict=True):
            leaves[position] = value
        return jax.tree.unflatten(self._structure, leaves)


def read_call(
    network: Any,
    images: PyTree,
    call_args: Sequence[Any],
    call_kwargs: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
    taken: Sequence[str],
) -> Call:
    """Tell the inputs of a call from its other arguments.

    Args:
        network: The network, whose signature tells of clashes.
        images: A batch: arrays, their shapes, tuples of ints as shapes of float32, or a tree of
            them; None if the network takes it by keyword.
        call_args: Further positional arguments of the network.
        call_kwargs: Its keyword arguments, whatever their names; None if there are none.
        arguments: More of its keyword arguments; `params` of a function and `state` of an Equinox
            module, an `equinox.nn.State`, are no arguments of the network.
        taken: Names that were given and that the public call took for itself.

    Returns:
        The call.

    Raises:
        ValueError: If there are no images, or a name could be the network's or ours.
    """
    own = {}
    arguments = dict(arguments)
    is_module = isinstance(network, nn.Module | nnx.Module)
    if not is_module and "params" in arguments:  # of functions
        own["params"] = arguments.pop("params")
    elif _is_equinox_state(arguments.get("state")):  # any other `state` is an input
        own["state"] = arguments.pop("state")
    kwargs = join_arguments(network, call_args, call_kwargs, arguments, [*taken, *own], "predict")
    images = jax.tree.map(_as_shape, images, is_leaf=_is_shape)
    image_leaves = jax.tree.leaves(images)
    if images is not None and not image_leaves:
        raise ValueError(f"images is {images!r}, expected arrays or their shapes")
    for leaf in image_leaves:
        if not _is_array(leaf):
            raise ValueError(f"images has a leaf {leaf!r}, expected {_HINT}")
    args = tuple(call_args) if images is None else (images, *call_args)
    # Sorted by name as JAX sorts dictionaries, whatever order they are given in.
    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=_is_nnx)
    arrays = [x for x in image_leaves or leaves if _has_first_axis(x)]
    if not arrays:
        if images is not None:
            raise ValueError(f"images has a leaf {image_leaves[0]!r}, expected {_HINT}")
        raise ValueError(
            "images is missing, expected a batch of images or its shape for"
            f" {describe_value(network)}"
        )
    # Most leaves of a tree of images have the batch; masks and tables may be among them.
    size = Counter(x.shape[0] for x in arrays).most_common(1)[0][0]
    positions, inputs, holds_batch = [], [], []
    for position, leaf in enumerate(leaves):
        is_batch = holds_rows(leaf, size)
        if is_batch or isinstance(leaf, jax.ShapeDtypeStruct):
            positions.append(position)
            inputs.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
            holds_batch.append(is_batch)
    return Call(tuple(inputs), tuple(holds_batch), own, tuple(leaves), tuple(positions), structure)


def read_check(check: PyTree, images: PyTree) -> PyTree:
    """Check a batch of real images against the images, or shapes, that a call is read from.

    Args:
        check: The batch: arrays, of any number of images.
        images: What `read_call` gets.

    Returns:
        `check` with the dtypes of `images`.

    Raises:
        ValueError: If it is no such batch, or not all of it is finite.
    """
    if images is None:
        raise ValueError("check is given, but images is None, expected images to compare it with")
    images = jax.tree.map(_as_shape, images, is_leaf=_is_shape)
    leaves = jax.tree.leaves(images)
    expected = ", ".join(f"({', '.join(['B', *map(str, x.shape[1:])])}) {x.dtype}" for x in leaves)
    expected = f"expected a batch of real images as those of the call: {expected}"
    structure: Any = jax.tree.structure(images)
    if jax.tree.structure(check) != structure:
        raise ValueError(f"check is {describe_value(check)}, {expected}")
    return jax.tree.unflatten(
        structure,
        [_check_leaf(x, y, expected) for x, y in zip(jax.tree.leaves(check), leaves, strict=True)],
    )


def draw_noise(images: PyTree) -> PyTree:
    """Draw standard normal numbers in the place of images.

    Args:
        images: What `read_call` gets.

    Returns:
        Arrays. What are no floats is as given, or zeros in the place of shapes.
    """
    if images is None:
        raise ValueError(
            "rescale is given without check, but images is None, expected images whose shape the"
            " noise has on which the network is run"
        )
    images = jax.tree.map(_as_shape, images, is_leaf=_is_shape)
    return draw_images(jax.tree.map(lambda x: _shape_of(x) if _is_float(x) else x, images))


def _shape_of(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _is_float(x):
    return _is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)


def _check_leaf(x, like, expected):
    is_array = _is_array(x) and not isinstance(x, jax.ShapeDtypeStruct)
    if not is_array or len(x.shape) != len(like.shape) or x.shape[1:] != like.shape[1:]:
        raise ValueError(f"check is {describe_value(x)}, {expected}")
    if 0 in x.shape:
        raise ValueError(f"check is empty: {describe_value(x)}, {expected}")
    are_floats = _is_float(x) and _is_float(like)
    if x.dtype != like.dtype and not are_floats:
        raise ValueError(f"check is {describe_value(x)}, {expected}")
    num_bad = int(np.sum(~np.isfinite(np.asarray(x, np.float64)))) if are_floats else 0
    if num_bad:
        raise ValueError(f"check has {num_bad} numbers that are NaN or infinite, {expected}")
    return np.asarray(x).astype(like.dtype)


def join_arguments(
    network: Any,
    call_args: Sequence[Any],
    call_kwargs: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
    taken: Sequence[str],
    caller: str,
) -> dict[str, Any]:
    """Return all keyword arguments of a network's call.

    Args:
        network: The network, whose signature tells of clashes.
        call_args: Its further positional arguments, which are only checked.
        call_kwargs: Its keyword arguments, whatever their names; None if there are none.
        arguments: More of its keyword arguments.
        taken: Names that were given and that the public call took for itself.
        caller: The name of the public call.

    Raises:
        ValueError: If a name could be the network's or ours, or is given twice.
    """
    check_instance("call_args", call_args, tuple | list, "a tuple of positional arguments")
    if call_kwargs is None:
        _check_clash(network, taken, caller)
        return dict(arguments)
    check_instance("call_kwargs", call_kwargs, Mapping, "a mapping of keyword arguments")
    twice = sorted(set(arguments) & set(call_kwargs))
    if twice:
        raise ValueError(f"{twice[0]} is given twice, by its name and in call_kwargs, expected one")
    return {**arguments, **call_kwargs}


def _check_clash(network, names, caller):
    """Raise ValueError if the network's call has an argument of a name that we took."""
    signature = _signature(network)
    parameters = list(signature.parameters.values()) if signature else []
    if inspect.isroutine(network):
        parameters = parameters[1:]  # a function's own `params`
    for name in names:
        found = [p for p in parameters if p.name == name]
        if name == "state" and found:  # of an Equinox module: what it is called with
            continue
        if found:
            raise ValueError(
                f"{name} is an argument of {caller} and one of the network's call, expected"
                f" call_kwargs={{{name!r}: ...}} for the network's; beside call_kwargs, also"
                f" an empty one, {name}= is {caller}'s"
            )


def _signature(network):
    try:
        is_function = inspect.isroutine(network)
        return inspect.signature(network if is_function else type(network).__call__)
    except (AttributeError, TypeError, ValueError):  # of what is not written in Python
        return None


def _is_shape(x):
    return isinstance(x, tuple) and bool(x) and all(type(size) is int and size > 0 for size in x)


def _as_shape(x):
    return jax.ShapeDtypeStruct(x, np.float32) if _is_shape(x) else x


def _is_nnx(x):
    return isinstance(x, nnx.Pytree | nnx.Variable | nnx.State)


def _is_array(x):
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _is_equinox_state(x):
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(x, equinox.nn.State)


def holds_rows(x: Any, count: int) -> bool:
    """Return whether an argument is an array with as many rows as there are images."""
    return _has_first_axis(x) and x.shape[0] == count


def _has_first_axis(x):
    if _is_nnx(x) or not _is_array(x) or not x.shape:
        return False
    is_key = x.dtype == np.uint32 and x.shape == (2,)  # of jax.random.PRNGKey
    return not is_key and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
