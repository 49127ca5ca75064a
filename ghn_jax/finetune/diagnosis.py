"""Why predicted parameters lack diversity: how alike the filters of each layer are.

In: the kernels of a network, by the name of their initialisation. Out: for each layer the
correlation between filters, the rank and the norm against He initialisation; and one figure.
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
    """A layer, its kernel seen as one filter (in kh kw) for each output channel.

    Attributes:
        name: Of the layer.
        num_filters: Number of output channels.
        filter_size: Number of elements of a filter.
        correlation: Mean absolute correlation between two filters; 0 where there is one, or where
            filters have one element.
        rank: Stable rank, the squared Frobenius over the squared spectral norm, divided by the
            largest that is possible: 1 where all directions are used alike, near 0 where there is
            one.
        norm: Frobenius norm divided by its expectation at He initialisation, where elements have
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
        layers: In the order of the graph.
        kernels: One for each: (kh, kw, in, out) or (in, out).

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
def _measure(filters):
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
    """Draw correlation, rank and norm of every layer, a line for each initialisation.

    Args:
        diagnoses: Of the same layers, by name of the initialisation.
        path: Of the image, such as `diagnosis.png` or `.svg`.
        title: Of the figure.
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
