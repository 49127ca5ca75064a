"""Break the symmetry of predicted parameters before fine-tuning (GHN-orth).

In: a network's variables and its kernels in order. Out: the variables with noise added to each
kernel and the result made orthogonal, and how alike the filters were before and after.

Predicted filters are correlated: within a kernel, the decoder's output varies little from one
output channel to the next. Source: Knyazev, "Pretraining a Neural Network before Knowing Its
Architecture", ICML 2022 workshop, arXiv 2207.10049 (docs/method.md, 'Fine-tuning protocol').
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.arrays import PyTree, TreePath
from ghn_jax.configuration.validation import check_flag, check_number, check_random_key
from ghn_jax.finetune.layers import Kernels, Layer
from ghn_jax.finetune.orthogonalization import as_tall_matrix
from ghn_jax.finetune.orthogonalization import orthogonalize as orthogonalize_kernel

AUTO = "auto"


class KernelStatistics(NamedTuple):
    """Measures how alike the filters of a kernel are.

    The kernel is seen as a matrix (out, in kh kw), transposed if it is wider than tall, as in the
    original.

    Attributes:
        correlation: Mean absolute correlation between two rows; 1 if all are alike.
        correlation_std: Standard deviation of all entries of the correlation matrix, to which the
            noise is proportional.
        largest_eigenvalue: Largest eigenvalue of the Gram matrix; 1 once orthogonal.
    """

    correlation: float
    correlation_std: float
    largest_eigenvalue: float


class LayerChange(NamedTuple):
    """What post-processing did to a layer.

    Attributes:
        layer: The layer.
        number: The layer's number, counted from 1 like `first_layer`.
        is_changed: Whether it was post-processed, which holds from `first_layer` on.
        before: Statistics before post-processing.
        after: Statistics after post-processing.
    """

    layer: Layer
    number: int
    is_changed: bool
    before: KernelStatistics
    after: KernelStatistics


class Postprocessed(NamedTuple):
    """The result of `postprocess`.

    Attributes:
        variables: The given variables with new kernels (numpy arrays).
        changes: The changes to each layer except the classifier, in order.
    """

    variables: PyTree
    changes: list[LayerChange]


def postprocess(
    variables: PyTree,
    order: Iterable[Layer | TreePath | str],
    *,
    orthogonalize: bool = True,
    noise_beta: float = 0.0,
    first_layer: int | str = 1,
    key: jax.Array | None = None,
) -> Postprocessed:
    """Add noise to the kernels of a network and make them orthogonal.

    Changes every kernel of `order` from `first_layer` on, except the last one, the classifier.
    Gaussian noise is added to the kernel's matrix (out, in kh kw); its standard deviation is
    noise_beta times that of the entries of the correlation matrix of the rows. The matrix is then
    replaced by the Q of its QR decomposition whose R has a positive diagonal.

    Args:
        variables: Any pytree, whether of Flax (with its collections or without), NNX, or plain.
        order: The kernels in the order of the graph, the classifier last: `layer_order(graph)`, or
            paths of arrays with two or more axes, output channels last.
        orthogonalize: Whether kernels become orthogonal (GHN-orth).
        noise_beta: Scale of the noise; 0 adds none. 3e-5 in the paper.
        first_layer: Number of the first layer to change, counted from 1; "auto" changes the second
            half of the layers.
        key: Random key for the noise; None means `jax.random.key(0)`.

    Returns:
        New variables, and statistics of every layer before and after.

    Raises:
        ValueError: If `order` has fewer than two kernels, `first_layer` lies beyond the last kernel
            before the classifier, or another argument is not as described.
    """
    check_flag("orthogonalize", orthogonalize)
    check_number("noise_beta", noise_beta)
    key = jax.random.key(0) if key is None else key
    check_random_key("key", key)
    kernels = Kernels(variables, order)
    first = find_first_layer(first_layer, len(kernels.layers))
    keys = jax.random.split(key, len(kernels.layers))
    changes = []
    for number, layer in enumerate(kernels.layers[:-1]):
        is_changed = number + 1 >= first and (orthogonalize or noise_beta > 0)
        kernel = np.asarray(kernels.read(number), np.float32)
        before = measure(kernel)
        after = before
        if is_changed:
            kernel = _change(kernel, keys[number], jnp.float32(noise_beta), orthogonalize)
            kernels.write(number, kernel)
            after = measure(kernel)
        changes.append(LayerChange(layer, number + 1, is_changed, before, after))
    return Postprocessed(kernels.variables(), changes)


def find_first_layer(first_layer: int | str, num_layers: int) -> int:
    """Resolve `first_layer` for a network with a given number of kernels.

    Args:
        first_layer: A layer's number from 1, or "auto" for the first one of the second half.
        num_layers: Number of kernels, including the classifier.

    Returns:
        A number in 1 .. num_layers - 1.

    Raises:
        ValueError: If there is no kernel besides the classifier, or `first_layer` is not in that
            range.
    """
    if num_layers < 2:
        raise ValueError(
            f"order has {num_layers} kernels, expected a classifier and at least one before it"
        )
    if first_layer == AUTO:
        return (num_layers - 1) // 2 + 1
    if type(first_layer) is not int or not 1 <= first_layer < num_layers:
        raise ValueError(
            f"first_layer is {first_layer!r}, expected 'auto' or an int in 1..{num_layers - 1}: the"
            f" network has {num_layers} kernels, of which the last one, the classifier, is never"
            " changed"
        )
    return first_layer


def measure(kernel: Any) -> KernelStatistics:
    """Measure how alike the filters of a kernel are.

    Args:
        kernel: (kh, kw, in, out) or (in, out).

    Returns:
        The statistics.
    """
    return KernelStatistics(*(float(value) for value in _measure(jnp.asarray(kernel))))


def correlation_matrix(matrix: jax.Array) -> jax.Array:
    """Correlate rows, (R, C) -> (R, R); 0 for a constant row, whose correlation is undefined."""
    centred = matrix - jnp.mean(matrix, axis=1, keepdims=True)
    norms = jnp.linalg.norm(centred, axis=1, keepdims=True)
    unit = jnp.where(norms > 0, centred / jnp.where(norms > 0, norms, 1), 0)
    return jnp.clip(unit @ unit.T, -1, 1)


@jax.jit
def _measure(kernel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    matrix, _ = as_tall_matrix(kernel)
    correlation = correlation_matrix(matrix)
    num_rows = matrix.shape[0]
    off_diagonal = jnp.sum(jnp.abs(correlation)) - jnp.sum(jnp.abs(jnp.diagonal(correlation)))
    mean = off_diagonal / max(num_rows * (num_rows - 1), 1)
    largest = jnp.square(jnp.linalg.norm(matrix, ord=2))
    return mean, _std(correlation), largest


def _std(values: jax.Array) -> jax.Array:
    # Divides by n - 1, as PyTorch does, which is undefined for a single value.
    return jnp.std(values, ddof=1) if values.size > 1 else jnp.zeros((), values.dtype)


@jax.jit(static_argnums=3)
def _change(
    kernel: jax.Array, key: jax.Array, noise_beta: jax.Array | float, orthogonalize: bool
) -> jax.Array:
    matrix, _ = as_tall_matrix(kernel)
    std = noise_beta * _std(correlation_matrix(matrix))
    kernel = kernel + std * jax.random.normal(key, kernel.shape, kernel.dtype)
    return orthogonalize_kernel(kernel) if orthogonalize else kernel
