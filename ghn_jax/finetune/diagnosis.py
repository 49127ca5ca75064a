"""Diagnose the lack of diversity in predicted parameters: how alike each layer's filters are.

In: a network's kernels from several initialisations, by name. Out: for each layer the correlation
between filters, the rank, and the norm relative to He initialisation; and one figure.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.extras import extra
from ghn_jax.finetune.layers import Layer
from ghn_jax.finetune.postprocessing import correlation_matrix


class LayerDiagnosis(NamedTuple):
    """Measurements of a layer whose kernel is seen as one filter (in kh kw) per output channel.

    Attributes:
        name: The layer's name.
        num_filters: Number of output channels.
        filter_size: Number of elements in a filter.
        correlation: Mean absolute correlation between two filters; 0 if there is only one filter or
            filters have only one element.
        rank: Stable rank (squared Frobenius norm over squared spectral norm) divided by its largest
            possible value: 1 if all directions are used equally, near 0 if only one is.
        norm: Frobenius norm divided by its expected value at He initialisation, where elements have
            variance 2 / filter_size.
    """

    name: str
    num_filters: int
    filter_size: int
    correlation: float
    rank: float
    norm: float


def diagnose(layers: Sequence[Layer], kernels: Sequence[np.ndarray]) -> list[LayerDiagnosis]:
    """Diagnose the kernels of a network.

    Args:
        layers: The layers in the order of the graph.
        kernels: The kernel of each layer, (kh, kw, in, out) or (in, out).

    Returns:
        One diagnosis for each layer.
    """
    diagnoses = []
    for layer, kernel in zip(layers, kernels, strict=True):
        filters = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)
        filters = filters.reshape(filters.shape[0], -1)  # (out, in kh kw)
        values = (float(value) for value in _measure(jnp.asarray(filters)))
        diagnoses.append(LayerDiagnosis(layer.name, *filters.shape, *values))
    return diagnoses


@jax.jit
def _measure(filters: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    num_filters, size = filters.shape
    if num_filters > 1 and size > 1:
        correlation = jnp.abs(correlation_matrix(filters))
        total = jnp.sum(correlation) - jnp.sum(jnp.diagonal(correlation))
        correlation = total / (num_filters * (num_filters - 1))
    else:
        correlation = jnp.zeros((), filters.dtype)
    squares = jnp.sum(jnp.square(filters))
    largest = jnp.square(jnp.linalg.norm(filters, ord=2))
    rank = jnp.where(largest > 0, squares / jnp.where(largest > 0, largest, 1), 0)
    expected = math.sqrt(2.0 * num_filters)
    return correlation, rank / min(num_filters, size), jnp.sqrt(squares) / expected


def draw_diagnosis(
    diagnoses: Mapping[str, Sequence[LayerDiagnosis]], path: str | pathlib.Path, title: str = ""
) -> None:
    """Draw the correlation, rank and norm of every layer, with a line for each initialisation.

    Args:
        diagnoses: Diagnoses of the same layers, by the name of the initialisation.
        path: The image file to write, such as `diagnosis.png` or `.svg`.
        title: The figure's title.
    """
    with extra("train", "pictures"):
        from matplotlib.figure import Figure

    panels = (
        ("correlation", "mean |correlation| of filters"),
        ("rank", "stable rank, share of the largest"),
        ("norm", "norm / He initialisation"),
    )
    figure = Figure(figsize=(7, 7))
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, (field, label) in zip(axes, panels, strict=True):
        for name, layers in diagnoses.items():
            numbers = range(1, len(layers) + 1)
            values = [getattr(layer, field) for layer in layers]
            axis.plot(numbers, values, marker=".", label=name)
        axis.set_ylabel(label, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, ncols=4)
    axes[0].set_title(title)
    axes[-1].set_xlabel("layer, in the order of the graph (the last one is the classifier)")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
