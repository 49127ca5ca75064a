"""Predict the parameters of a traced network, and report what was predicted."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.tracing.traced_network import STATE, TracedNetwork, trace
from ghn_jax.tracing.views import View


class UnpredictedError(ValueError):
    """A parameter cannot be predicted, and `strict` forbids to keep it."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was predicted and what was not.

    Attributes:
        predicted: Paths of predicted parameters, joined by "/".
        kept: For the path of everything else, the reason: it has its initial value.
        num_predicted: Number of predicted parameters.
        num_parameters: Number of parameters; state such as running statistics does not count.
    """

    predicted: tuple[str, ...]
    kept: dict[str, str]
    num_predicted: int
    num_parameters: int

    def __str__(self) -> str:
        lines = [
            f"{self.num_predicted:,} of {self.num_parameters:,} parameters predicted,"
            f" {len(self.predicted)} tensors"
        ]
        lines += [f"kept {path}: {why}" for path, why in self.kept.items() if why != STATE]
        num_state = sum(why == STATE for why in self.kept.values())
        return "\n".join(lines + ([f"kept {num_state} tensors of state"] if num_state else []))


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkPrediction:
    """A network of any library with predicted parameters.

    Attributes:
        network: As given; an NNX or Equinox module is a new one that holds the parameters.
        variables: What the network's `init` returns, in shapes and dtypes: for `network.apply`.
        graph: What the GHN read.
        report: What was predicted.
        views: For every tensor of the graph, which elements it is of the array at its path.
    """

    network: Any
    variables: Any
    graph: ArchGraph
    report: Report
    views: tuple[View, ...]

    @property
    def num_parameters(self) -> int:
        """Number of predicted parameters."""
        return self.report.num_predicted


def predict_network(
    predictor: Predictor,
    ghn_params: Any,
    model: Any,
    images: Any,
    *,
    strict: bool = False,
    key: jax.Array | None = None,
    **call_arguments: Any,
) -> NetworkPrediction:
    """Predict the parameters of any network in one forward pass of a GHN.

    Args:
        predictor: Of the GHN.
        ghn_params: Of the GHN.
        model: A network, see `ghn_jax.tracing.describe`.
        images: A batch of images, or their shapes.
        strict: Raise an error if a parameter cannot be predicted.
        key: For the network's initialiser, which fills what cannot be predicted.
        **call_arguments: Of the network's call.

    Returns:
        The variables, the graph and the report.

    Raises:
        UnpredictedError: If `strict` and a parameter cannot be predicted.
        ValueError: If the model is none, or its output does not depend on the images.
    """
    config = predictor.config
    traced = trace(
        model,
        images,
        num_classes=config.num_classes,
        max_distance=config.virtual_edges,
        key=key,
        **call_arguments,
    )
    report = make_report(traced)
    if strict:
        _refuse_kept(report)
    if not traced.graph.tensors:
        raise ValueError(f"no parameter can be predicted:\n{report}")
    (arrays,) = predictor.predict(ghn_params, predictor.prepare([traced.graph]))
    network, variables = traced.network.finish(fill_variables(traced, arrays))
    return NetworkPrediction(network, variables, traced.graph, report, traced.views)


def make_report(traced: TracedNetwork) -> Report:
    """Say what of a traced network can be predicted."""
    network = traced.network
    names = ["/".join(path) for path in network.paths]
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(network.variables)]
    indices = [index for index in range(len(names)) if network.is_parameter[index]]
    predicted = [index for index in indices if index not in traced.kept]
    return Report(
        tuple(names[index] for index in predicted),
        {names[index]: reason for index, reason in traced.kept.items()},
        sum(sizes[index] for index in predicted),
        sum(sizes[index] for index in indices),
    )


def fill_variables(traced: TracedNetwork, arrays: list[np.ndarray]) -> Any:
    """Put predicted arrays where the network looks for them, and initial values elsewhere.

    Args:
        traced: A traced network.
        arrays: In the order and shapes of its graph's tensors.

    Returns:
        The tree of the network's variables.
    """
    shapes, structure = jax.tree.flatten(traced.network.variables)
    leaves: list[Any] = [None] * len(shapes)
    for view, array in zip(traced.views, arrays, strict=True):
        index, shape = view.parameter, shapes[view.parameter]
        if not view.steps:
            leaves[index] = array.astype(shape.dtype, copy=False)
            continue
        if leaves[index] is None:
            leaves[index] = np.empty(shape.shape, shape.dtype)
        view.restore(leaves[index], array)
    kept = list(traced.kept)
    for index, value in zip(kept, traced.network.initialize(kept), strict=True):
        leaves[index] = value
    return jax.tree.unflatten(structure, leaves)


def _refuse_kept(report: Report) -> None:
    kept = [f"{path}: {why}" for path, why in report.kept.items() if why != STATE]
    if kept:
        raise UnpredictedError(
            f"strict is True, but {len(kept)} parameters cannot be predicted:\n" + "\n".join(kept)
        )
