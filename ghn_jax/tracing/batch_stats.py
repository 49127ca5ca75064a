"""Fill the running statistics of batch norms from data, for a network that was never trained.

In: a network of Flax (linen or NNX), Haiku or Equinox, its variables, and batches. Out: variables
of the same kind. What differs between libraries is how they write down a running average.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ghn_jax.configuration.validation import check_random_key, describe_value
from ghn_jax.tracing.call import holds_rows, join_arguments

# The state, what is called with state and batch, what reads a call's outcome (with the state before
# it) as the next state and the batch's statistics, and what puts their mean into variables.
_Opened = tuple[Any, Callable[..., Any], Callable[..., tuple[Any, Any]], Callable[..., Any]]

# State of spectral norms: no averages over batches, each call brings them nearer to their limits.
_ITERATES = ("u", "u0", "v", "sigma")
_EXPECTED = "arguments with which it is, such as train=True or use_running_average=False"


def calibrate_batch_stats(
    network: Any,
    variables: Any,
    images: jax.Array | np.ndarray | Iterable[Any],
    *,
    key: jax.Array | None = None,
    call_args: Sequence[Any] = (),
    call_kwargs: Mapping[str, Any] | None = None,
    **call_arguments: Any,
) -> Any:
    """Replace the running statistics of a network by the statistics of batches.

    A running average becomes m * old + (1 - m) * batch. Computed once from zeros and once from
    ones, the difference of the two is m, and so the batch's statistic is known for any momentum.
    Spectral norms hold no averages: their state moves on by one call per batch. Batch norms that
    average over a named axis (`axis_name="batch"`) find it: it has one device, all images on it.

    Args:
        network: A Flax linen module, an NNX module, a Haiku transform with state, or an Equinox
            module of a single image, called as `network(x, state)`.
        variables: Its variables, such as those predicted: of linen with a collection
            `batch_stats`, of NNX the module's state, of Haiku (params, state), of Equinox (module's
            arrays, state).
        images: A batch, or an iterable of batches, whose statistics are averaged.
        key: For dropout; None is `jax.random.key(0)`.
        call_args: Further positional arguments of the call.
        call_kwargs: Its keyword arguments, also those that are called as one of these: beside them,
            `key` is that above.
        **call_arguments: Keyword arguments of the call that updates running statistics, such as
            `train=True`. NNX modules are in training mode without.

    Returns:
        The variables with new running statistics, of the kind given. `network` does not change.

    Raises:
        ValueError: If there are no running statistics, the call does not update one of them, or
            an argument could be the network's or ours.
    """
    taken = [] if key is None else ["key"]
    kwargs = join_arguments(
        network, call_args, call_kwargs, call_arguments, taken, "calibrate_batch_stats"
    )
    key = jax.random.key(0) if key is None else key
    check_random_key("key", key)
    state, call, read, finish = _open(network, variables, key, (tuple(call_args), kwargs))
    call = _with_named_axes(call)
    batches = [images] if hasattr(images, "ndim") else images
    total, count = None, 0
    for batch in batches:
        state, statistics = read(state, call(state, batch))
        total = statistics if total is None else jax.tree.map(jnp.add, total, statistics)
        count += 1
    if count == 0:
        raise ValueError("images is empty, expected at least one batch")
    return finish(state, jax.tree.map(lambda x: x / count, total))


def _open(network, variables, key, arguments) -> _Opened:
    if isinstance(network, nn.Module):
        return _open_linen(network, variables, key, arguments)
    if isinstance(network, nnx.Module):
        return _open_nnx(network, variables, arguments)
    if type(network).__name__ == "TransformedWithState":  # of Haiku, which need not be there
        return _open_haiku(network, variables, key, arguments)
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(network, equinox.Module):
        return _open_equinox(equinox, network, variables, arguments)
    raise ValueError(
        f"network is {describe_value(network)}, expected a Flax, NNX or Equinox module or a Haiku"
        " transform with state"
    )


def _open_linen(network, variables, key, arguments):
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"variables is {describe_value(variables)}, expected a mapping with batch_stats"
        )
    if "batch_stats" not in variables:
        raise ValueError(f"variables has the collections {list(variables)}, expected batch_stats")

    args, kwargs = arguments

    def call(stats, batch):
        given = {**variables, "batch_stats": stats}
        rngs = {"dropout": key}
        _, new = network.apply(given, batch, *args, mutable=["batch_stats"], rngs=rngs, **kwargs)
        return jax.tree.unflatten(jax.tree.structure(stats), jax.tree.leaves(new["batch_stats"]))

    def finish(stats):
        found = {**variables, "batch_stats": stats}
        return flax.core.freeze(found) if isinstance(variables, flax.core.FrozenDict) else found

    return _open_averages(variables["batch_stats"], call, finish)


def _open_nnx(network, variables, arguments):
    if not isinstance(variables, nnx.State):
        raise ValueError(
            f"variables is {describe_value(variables)}, expected the state of the module"
        )
    graph_definition = nnx.graphdef(network)
    stats, rest = nnx.split_state(variables, nnx.BatchStat, ...)
    if not jax.tree.leaves(stats):
        raise ValueError("variables has no nnx.BatchStat, expected the state of batch norms")

    def call(stats, batch):
        module = nnx.merge(graph_definition, nnx.merge_state(stats, rest))
        module.train()
        # Random streams given for the call count on: copies, which belong to this tracing.
        is_rngs = lambda x: isinstance(x, nnx.Rngs)  # noqa: E731
        args, kwargs = jax.tree.map(
            lambda x: nnx.clone(x) if is_rngs(x) else x, arguments, is_leaf=is_rngs
        )
        module(batch, *args, **kwargs)
        return nnx.state(module, nnx.BatchStat)

    return _open_averages(stats, call, lambda stats: nnx.merge_state(stats, rest))


def _open_averages(stats, call, put):
    """Running averages with a momentum that is not known, beside the state of spectral norms."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(stats)[0]]
    flags = [_is_average(path, x) for path, x in zip(paths, jax.tree.leaves(stats), strict=True)]
    is_average = jax.tree.unflatten(jax.tree.structure(stats), flags)

    def step(state, batch):
        def fill(value):
            return jax.tree.map(
                lambda x, flag: jnp.full_like(x, value) if flag else x, state, is_average
            )

        return call(fill(0), batch), call(fill(1), batch)

    def read(state, outcome):
        old, zeros, ones = (jax.tree.leaves(tree) for tree in (state, *outcome))
        found = []
        for path, flag, x, y in zip(paths, flags, zeros, ones, strict=True):
            found.append(_remove_momentum(_name(path), x, y) if flag else None)
        is_first = state is stats  # later calls may find iterates at their limits
        is_same = all(np.array_equal(x, y) for x, y in zip(old, zeros, strict=True))
        if is_first and is_same and not any(flags):
            raise ValueError(f"{_name(paths[0])} is not updated by the call, expected {_EXPECTED}")
        return outcome[0], found

    def finish(state, found):
        leaves = [
            x if mean is None else mean.astype(x.dtype)
            for x, mean in zip(jax.tree.leaves(state), found, strict=True)
        ]
        return put(jax.tree.unflatten(jax.tree.structure(state), leaves))

    return stats, step, read, finish


def _open_haiku(transform, variables, key, arguments):
    """Moving averages of Haiku: `hidden` is one from zero, `average` that divided by its weight."""
    args, kwargs = arguments
    params, state = _pair(variables, "(params, state)")
    moving = [name for name, x in state.items() if {"hidden", "average", "counter"} <= set(x)]
    if not moving:
        raise ValueError(f"variables has the state {list(state)}, expected moving averages")

    def step(state, batch):
        def fill(value):
            reset = {
                name: {
                    "hidden": jnp.full_like(state[name]["hidden"], value),
                    "average": state[name]["average"],
                    "counter": jnp.zeros_like(state[name]["counter"]),
                }
                for name in moving
            }
            return transform.apply(params, {**state, **reset}, key, batch, *args, **kwargs)[1]

        return fill(0), fill(1)

    def read(state, outcome):
        zeros, ones = outcome
        found = {}
        for name in moving:
            new = zeros[name]
            if int(new["counter"]) == 0:
                raise ValueError(
                    f"state[{name!r}] is not updated by the call, expected {_EXPECTED}"
                )
            value = _remove_momentum(f"state[{name!r}]", new["hidden"], ones[name]["hidden"])
            is_corrected = not np.array_equal(new["average"], new["hidden"])
            found[name] = {"average": value, "hidden": new["hidden"] if is_corrected else value}
        return zeros, found

    def finish(state, found):
        return params, {**state, **{name: {**state[name], **found[name]} for name in moving}}

    return state, step, read, finish


def _open_equinox(equinox, network, variables, arguments):
    """Batch norms of Equinox, which take the first batch's statistics for the average."""
    arrays, state = _pair(variables, "(arrays of the module, state)")
    network = equinox.combine(
        arrays, equinox.filter(network, equinox.is_inexact_array, inverse=True)
    )
    is_norm = lambda x: isinstance(x, equinox.nn.BatchNorm)  # noqa: E731
    norms = [x for x in jax.tree.leaves(network, is_leaf=is_norm) if is_norm(x)]
    if not norms:
        raise ValueError("network has no equinox.nn.BatchNorm, expected running statistics")
    axes = {x.axis_name if isinstance(x.axis_name, str) else x.axis_name[0] for x in norms}
    if len(axes) > 1:
        raise ValueError(f"network has batch norms over the axes {sorted(axes)}, expected one axis")
    averages = [x.ema_state_index if x.mode == "ema" else x.batch_state_index for x in norms]
    starts = [x.ema_first_time_index if x.mode == "ema" else x.batch_counter for x in norms]
    leaves, structure = jax.tree.flatten(arguments)

    def run(state, batch):
        places = [i for i, leaf in enumerate(leaves) if holds_rows(leaf, len(batch))]

        def call(x, state, rows):
            given = dict(zip(places, rows, strict=True))
            values = [given.get(index, leaf) for index, leaf in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(structure, values)
            # By its name only where it need not be the second argument.
            return network(x, *args, state=state, **kwargs) if args else network(x, state, **kwargs)

        rows = [jnp.asarray(leaves[place]) for place in places]
        call = jax.vmap(call, (0, None, 0), (0, None), axis_name=next(iter(axes)))
        return call(batch, state, rows)[1]

    def step(state, batch):
        for norm, average, start in zip(norms, averages, starts, strict=True):
            state = state.set(start, jnp.full_like(state.get(start), norm.mode == "ema"))
            state = state.set(average, jax.tree.map(jnp.zeros_like, state.get(average)))
        return run(state, batch)

    def read(state, new):
        for norm, start in zip(norms, starts, strict=True):
            if bool(new.get(start)) == (norm.mode == "ema"):
                raise ValueError(
                    "state of a BatchNorm is not updated by the call, expected a network that is"
                    " trained: equinox.nn.inference_mode(network, False)"
                )
        return new, [new.get(average) for average in averages]

    def finish(state, found):
        state = jax.tree.map(lambda x: x, state)  # `set` makes what it is called on unusable
        for average, values in zip(averages, found, strict=True):
            state = state.set(average, values)
        return arrays, state

    return state, step, read, finish


def _with_named_axes(call):
    """Compile a call within the named axes that it asks for: batch norms over several devices."""
    axes: list[str] = []
    compiled: Any = None

    def within(state, batch):
        run = call
        for name in axes:
            run = jax.vmap(run, None, 0, axis_name=name, axis_size=1)
        return jax.tree.map(lambda x: x[(0,) * len(axes)], run(state, batch))

    def run(state, batch):
        nonlocal compiled
        while True:
            if compiled is None:
                compiled = jax.jit(lambda *inputs: within(*inputs))
            try:
                return compiled(state, batch)
            except NameError as error:
                # The name stands nowhere else, and modules made within a call cannot be asked.
                match = re.search(r"unbound axis name: (\w+)", str(error))
                if not match or match[1] in axes:
                    raise
                axes.append(match[1])
                compiled = None

    return run


def _pair(variables, expected):
    if not isinstance(variables, tuple) or len(variables) != 2:
        raise ValueError(f"variables is {describe_value(variables)}, expected {expected}")
    return variables


def _is_average(path, leaf) -> bool:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name == "value" and len(path) > 1:  # of an NNX variable
        name = jax.tree_util.keystr(path[-2:-1], simple=True)
    return name.split("/")[-1] not in _ITERATES and jnp.issubdtype(leaf.dtype, jnp.inexact)


def statistics_of_batch(from_zeros: Any, from_ones: Any) -> Any:
    """The statistics of a batch, for any momentum.

    Args:
        from_zeros: Running statistics after one update of zeros.
        from_ones: The same after one update of ones, with the same batch.

    Returns:
        The batch's statistics.

    Raises:
        ValueError: If one of them was not updated.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x, y: _remove_momentum(_name(path), x, y), from_zeros, from_ones
    )


def _name(path) -> str:
    return f"batch_stats{jax.tree_util.keystr(path)}"


def _remove_momentum(name, from_zeros, from_ones):
    rest = 1 - np.median(np.asarray(from_ones - from_zeros))
    if rest <= 1e-4:
        raise ValueError(f"{name} is not updated by the call, expected {_EXPECTED}")
    return from_zeros / np.float32(rest)
