"""Predict the parameters of one network, and say what was predicted.

In: a GHN's programs and parameters, and a network: the plan of an architecture, or a network that
`ghn_jax.tracing` reads. Out: a `Prediction`, of every network the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ghn_jax.configuration.validation import check_flag, check_instance
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.targets.network import TargetNetwork, params_tree
from ghn_jax.targets.plan import Plan
from ghn_jax.targets.spelling import default_operations
from ghn_jax.tracing import Report, fill_variables, make_report
from ghn_jax.tracing.call import read_call
from ghn_jax.tracing.traced_network import trace_call
from ghn_jax.tracing.views import View


class UnpredictedError(ValueError):
    """A parameter cannot be predicted, and `strict` forbids to keep it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """A network with predicted parameters.

    Attributes:
        network: The network as given; an NNX or Equinox module is a new one that holds the
            parameters. Of an architecture, the Flax module, through which every transformation of
            JAX passes.
        variables: What the network is called with in its own library, in the shapes and dtypes of
            its initialiser: of a Flax linen module the variables of `network.apply`, of Haiku
            params or (params, state), of NNX the module's state, of Equinox the module's arrays or,
            with state, a pair, of a function its `params`. Of an architecture `{"params": ...}`,
            float32: batch norm then uses the statistics of the batch.
        graph: What the GHN read.
        report: Which parameters were predicted, which were kept, and why. Those of an architecture
            are all predicted.
        views: For every tensor of the graph, which elements it is of which leaf of `variables`, or
            what function of them; `view.read(leaf)` is the tensor.
    """

    network: Any
    variables: Any
    graph: ArchGraph
    report: Report
    views: tuple[View, ...]

    @property
    def num_parameters(self) -> int:
        """Number of predicted parameters; `report.num_parameters` also counts those kept."""
        return self.report.num_predicted


def predict_plan(predictor: Predictor, ghn_params: Any, plan: Plan, graph: ArchGraph) -> Prediction:
    """Predict all parameters of an architecture in one forward pass of a GHN.

    Args:
        predictor: The GHN's programs.
        ghn_params: The GHN's parameters.
        plan: The lowered architecture, with as many classes as the GHN.
        graph: Its graph, of our own code or of a file, with the tensors of `plan.tensors`.

    Returns:
        The prediction.

    Raises:
        ValueError: If the plan has another number of classes, or the graph is of another network.
    """
    check_instance("plan", plan, Plan, "a plan, as ghn_jax.targets.plan.lower makes them")
    check_instance("graph", graph, ArchGraph, "an ArchGraph")
    if plan.num_classes != predictor.config.num_classes:
        raise ValueError(
            f"plan has num_classes {plan.num_classes}, expected {predictor.config.num_classes}, as"
            " the GHN predicts"
        )
    _check_tensors(plan, graph)
    (arrays,) = predictor.predict(ghn_params, predictor.prepare([graph]))
    network = TargetNetwork(plan, default_operations())
    variables = {"params": params_tree(plan, arrays)}
    paths = sorted(tensor.path for tensor in plan.tensors)  # as JAX orders the leaves
    leaf_index = {path: index for index, path in enumerate(paths)}
    views = tuple(View(leaf_index[tensor.path], tensor.shape) for tensor in plan.tensors)
    count = plan.num_parameters
    report = Report(tuple("/".join(path) for path in paths), {}, count, count)
    return Prediction(network, variables, graph, report, views)


def predict_network(
    predictor: Predictor,
    ghn_params: Any,
    /,
    network: Any,
    images: Any = None,
    *,
    strict: bool = False,
    key: jax.Array | None = None,
    call_args: Sequence[Any] = (),
    call_kwargs: Mapping[str, Any] | None = None,
    **call_arguments: Any,
) -> Prediction:
    """Predict the parameters of a network of any library in one forward pass of a GHN.

    Args:
        predictor: The GHN's programs.
        ghn_params: The GHN's parameters.
        network: A network, see `ghn_jax.tracing.describe`.
        images: A batch of images, its shape, or a tree of them, see `ghn_jax.trace`; None if the
            network takes them by keyword.
        strict: Whether a parameter that cannot be predicted is an error.
        key: For the network's initialiser, which fills what cannot be predicted; None is
            `jax.random.key(0)`.
        call_args: Further positional arguments of the network's call.
        call_kwargs: Its keyword arguments, also those of names that are taken here.
        **call_arguments: Its other keyword arguments.

    Returns:
        The prediction.

    Raises:
        UnpredictedError: If `strict` and a parameter cannot be predicted.
        ValueError: If `network` is not a supported one, its output does not depend on the images,
            or none of its parameters can be predicted.
    """
    check_flag("strict", strict)
    config = predictor.config
    taken = [name for name, given in (("key", key is not None), ("strict", strict)) if given]
    call = read_call(network, images, call_args, call_kwargs, call_arguments, taken)
    traced = trace_call(network, call, config.num_classes, config.virtual_edges, key)
    report = make_report(traced)
    if strict and report.unpredicted:
        raise UnpredictedError(
            f"strict is True, but {len(report.unpredicted)} parameters cannot be predicted:\n"
            + "\n".join(report.unpredicted)
        )
    if not traced.graph.tensors:
        raise ValueError(f"no parameter of network can be predicted:\n{report}")
    (arrays,) = predictor.predict(ghn_params, predictor.prepare([traced.graph]))
    finished, variables = traced.description.finish(fill_variables(traced, arrays))
    return Prediction(finished, variables, traced.graph, report, traced.views)


def _check_tensors(plan: Plan, graph: ArchGraph) -> None:
    """Raise ValueError unless the graph's tensors are the plan's, but for their nodes."""
    found, expected = (
        [(tensor.path, tensor.shape, tensor.role) for tensor in tensors]
        for tensors in (graph.tensors, plan.tensors)
    )
    if found == expected:
        return
    if len(found) != len(expected):
        raise ValueError(f"graph has {len(found)} tensors, expected the plan's {len(expected)}")
    one, other = next(pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1])
    raise ValueError(
        f"graph has the {one[2]} {'/'.join(one[0])} of shape {one[1]}, expected the plan's"
        f" {other[2]} {'/'.join(other[0])} of shape {other[1]}"
    )
