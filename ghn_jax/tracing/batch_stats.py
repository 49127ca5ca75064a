"""Fill the running statistics of batch norms from data, for a network that was never trained."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.configuration.validation import check_instance, check_random_key


def calibrate_batch_stats(
    network: nn.Module,
    variables: Any,
    images: jax.Array | np.ndarray | Iterable[Any],
    *,
    key: jax.Array | None = None,
    **call_arguments: Any,
) -> Any:
    """Replace the running statistics of a Flax module by the statistics of batches.

    A running average becomes m * old + (1 - m) * batch. Computed once from zeros and once from
    ones, the difference of the two is m, and so the batch's statistic is known for any momentum.

    Args:
        network: A Flax linen module with a collection `batch_stats`.
        variables: Its variables, such as those predicted.
        images: A batch, or an iterable of batches, whose statistics are averaged.
        key: For dropout; None is `jax.random.key(0)`.
        **call_arguments: Keyword arguments of the call that updates running statistics, such as
            `train=True`.

    Returns:
        The variables with new `batch_stats`.

    Raises:
        ValueError: If there are no running statistics, or the call does not update one of them.
    """
    check_instance("network", network, nn.Module, "a Flax linen module")
    check_instance("variables", variables, Mapping, "a mapping with batch_stats")
    if "batch_stats" not in variables:
        raise ValueError(f"variables has the collections {list(variables)}, expected batch_stats")
    batches = [images] if hasattr(images, "ndim") else images
    key = jax.random.key(0) if key is None else key
    check_random_key("key", key)

    @jax.jit
    def update(variables, batch, fill):
        stats = jax.tree.map(lambda x: jnp.full_like(x, fill), variables["batch_stats"])
        _, new = network.apply(
            {**variables, "batch_stats": stats},
            batch,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            **call_arguments,
        )
        return new["batch_stats"]

    total, count = None, 0
    for batch in batches:
        from_zeros, from_ones = update(variables, batch, 0.0), update(variables, batch, 1.0)
        stats = statistics_of_batch(from_zeros, from_ones)
        total = stats if total is None else jax.tree.map(jnp.add, total, stats)
        count += 1
    if total is None:
        raise ValueError("images is empty, expected at least one batch")
    return {**variables, "batch_stats": jax.tree.map(lambda x: x / count, total)}


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
    return jax.tree_util.tree_map_with_path(_remove_momentum, from_zeros, from_ones)


def _remove_momentum(path, from_zeros, from_ones):
    rest = 1 - np.median(np.asarray(from_ones - from_zeros))
    if rest <= 1e-4:
        raise ValueError(
            f"batch_stats{jax.tree_util.keystr(path)} is not updated by the call, expected"
            " arguments with which it is, such as train=True or use_running_average=False"
        )
    return from_zeros / np.float32(rest)
