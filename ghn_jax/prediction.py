"""Predict the parameters of one network, and say what was predicted.

In: a GHN's programs and parameters, and a network: the plan of an architecture, or a network that
`ghn_jax.tracing` reads. Out: a `Prediction`, of every network the same.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ghn_jax.configuration.validation import check_flag, check_instance
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.targets.network import TargetNetwork, params_tree
from ghn_jax.targets.operations import NATIVE
from ghn_jax.targets.plan import Plan
from ghn_jax.targets.spelling import default_operations
from ghn_jax.tracing import Report, fill_variables, make_report
from ghn_jax.tracing.activations import NetworkOnImages
from ghn_jax.tracing.call import Call, draw_noise, read_call, read_check
from ghn_jax.tracing.rescaling import NOISE, read_rescale, set_scales
from ghn_jax.tracing.traced_network import read_on_images, trace_call
from ghn_jax.tracing.views import View

_NOISE_BATCH_SIZE = 8  # of architectures, whose norms use the batch's statistics


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


def predict_plan(
    predictor: Predictor,
    ghn_params: Any,
    plan: Plan,
    graph: ArchGraph,
    *,
    check: Any = None,
    rescale: bool | str = False,
) -> Prediction:
    """Predict all parameters of an architecture in one forward pass of a GHN.

    Args:
        predictor: The GHN's programs.
        ghn_params: The GHN's parameters.
        plan: The lowered architecture, with as many classes as the GHN.
        graph: Its graph, of our own code or of a file, with the tensors of `plan.tensors`.
        check: A batch of images on which the scale of activations is measured, see `GHN.predict`.
        rescale: Whether, and how, they are brought to He's.

    Returns:
        The prediction.

    Raises:
        ValueError: If the plan has another number of classes, the graph is of another network, or
            `check` or `rescale` is not as described.
    """
    check_instance("plan", plan, Plan, "a plan, as ghn_jax.targets.plan.lower makes them")
    check_instance("graph", graph, ArchGraph, "an ArchGraph")
    if plan.num_classes != predictor.config.num_classes:
        raise ValueError(
            f"plan has num_classes {plan.num_classes}, expected {predictor.config.num_classes}, as"
            " the GHN predicts"
        )
    _check_tensors(plan, graph)
    rescale_by = read_rescale(rescale, check is not None)
    like = jax.ShapeDtypeStruct((_NOISE_BATCH_SIZE, *plan.input_shape), np.float32)
    if check is not None:
        check = read_check(check, like)
    noise = draw_noise(like) if rescale_by == NOISE else None
    (arrays,) = predictor.predict(ghn_params, predictor.prepare([graph]))
    network = TargetNetwork(plan, default_operations())

    def fill(arrays):
        return {"params": params_tree(plan, arrays)}

    read = functools.partial(_read_on_images, plan)
    variables, scales = set_scales(plan.tensors, arrays, fill, read, check, noise, rescale_by)
    paths = sorted(tensor.path for tensor in plan.tensors)  # as JAX orders the leaves
    leaf_index = {path: index for index, path in enumerate(paths)}
    views = tuple(View(leaf_index[tensor.path], tensor.shape) for tensor in plan.tensors)
    count = plan.num_parameters
    report = Report(tuple("/".join(path) for path in paths), {}, count, count, scales)
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
    check: Any = None,
    rescale: bool | str = False,
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
        check: A batch of images on which the scale of activations is measured, see `GHN.predict`.
        rescale: Whether, and how, they are brought to He's.
        call_args: Further positional arguments of the network's call.
        call_kwargs: Its keyword arguments, also those of names that are taken here.
        **call_arguments: Its other keyword arguments.

    Returns:
        The prediction.

    Raises:
        UnpredictedError: If `strict` and a parameter cannot be predicted.
        ValueError: If `network` is not a supported one, its output does not depend on the images,
            none of its parameters can be predicted, or an argument is not as described.
    """
    check_flag("strict", strict)
    config = predictor.config
    given = {"key": key is not None, "strict": strict}
    given |= {"check": check is not None, "rescale": rescale is not False}
    taken = [name for name, is_given in given.items() if is_given]
    read_call_of = functools.partial(
        read_call,
        network,
        call_args=call_args,
        call_kwargs=call_kwargs,
        arguments=call_arguments,
        taken=taken,
    )
    call = read_call_of(images)
    rescale_by = read_rescale(rescale, check is not None)
    if check is not None:
        check = read_check(check, images)
        _check_batches(read_call_of(check), call)
    noise = draw_noise(images) if rescale_by == NOISE else None
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
    variables, scales = set_scales(
        traced.graph.tensors,
        arrays,
        lambda arrays: fill_variables(traced, arrays),
        lambda images: read_on_images(network, read_call_of(images), traced, key),
        check,
        noise,
        rescale_by,
    )
    finished, variables = traced.description.finish(variables)
    report = dataclasses.replace(report, scales=scales)
    return Prediction(finished, variables, traced.graph, report, traced.views)


def _read_on_images(plan: Plan, images: Any) -> NetworkOnImages:
    """Return what an architecture's network computes on images, in XLA's own operations."""
    network = TargetNetwork(plan, NATIVE)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    jaxpr = jax.make_jaxpr(network.apply)({"params": variables}, images)
    names = tuple("/".join(path) for path in sorted(tensor.path for tensor in plan.tensors))
    return NetworkOnImages(jaxpr, (images,), names, frozenset(range(len(names))))


def _check_batches(checked: Call, call: Call) -> None:
    """Raise ValueError unless the call with the images of `check` is the other one."""
    if checked.holds_batch != call.holds_batch:
        raise ValueError(
            f"check has {checked.batch_size} images, expected {call.batch_size} as of images: other"
            " arguments of the call hold the batch, too"
        )


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
