"""Trace a network to its graph, on shapes only: `jax.make_jaxpr`, then the rules."""

import dataclasses
from typing import Any

import jax

from ghn_jax.graphs import ArchGraph
from ghn_jax.targets.operations import native_operations
from ghn_jax.tracing import rules  # noqa: F401 (fills the table of rules)
from ghn_jax.tracing.builder import NO_USE, GraphBuilder
from ghn_jax.tracing.frontends import Network, describe
from ghn_jax.tracing.interpreter import interpret
from ghn_jax.tracing.values import Constant, Data, Value, Weight
from ghn_jax.tracing.views import View

# A prime that no layer is a multiple of: an axis holds the batch if its size is divisible by it,
# whatever reshapes and transposes it went through.
_BATCH_SIZE = 1009
STATE = "no parameter but state: kept as initialised"


@dataclasses.dataclass(frozen=True, eq=False)
class TracedNetwork:
    """A network and the graph of its computation.

    Attributes:
        network: The network.
        graph: What a GHN reads.
        views: For every tensor of the graph, which elements of which leaf of the variables.
        kept: For every leaf of the variables that cannot be predicted, the reason.
    """

    network: Network
    graph: ArchGraph
    views: tuple[View, ...]
    kept: dict[int, str]


def trace(
    model: Any,
    images: Any,
    *,
    num_classes: int | None = None,
    max_distance: int = 50,
    key: jax.Array | None = None,
    **call_arguments: Any,
) -> TracedNetwork:
    """Read the graph of a network off its computation. Nothing is allocated.

    Args:
        model: A network of any library, see `describe`.
        images: A batch, arrays or shapes; only the shape after the first axis matters.
        num_classes: If the last linear layer is as wide, it is the classifier.
        max_distance: Longest distance with a virtual edge.
        key: For the network's own initialiser.
        **call_arguments: Keyword arguments of the call, such as `train=False`.

    Returns:
        The graph and where its tensors lie.

    Raises:
        ValueError: If the model is none, or its output does not depend on the images.
    """
    network, jaxpr = trace_jaxpr(model, images, key, **call_arguments)
    return read_graph(network, jaxpr, num_classes, max_distance)


def trace_jaxpr(
    model: Any, images: Any, key: jax.Array | None = None, **call_arguments: Any
) -> tuple[Network, Any]:
    """Describe a network and trace its call; arguments as of `trace`."""
    key = jax.random.key(0) if key is None else key
    shapes = jax.tree.map(_as_batch(None), images)
    with native_operations():
        network = describe(model, shapes, key, call_arguments)
        try:
            jaxpr = jax.make_jaxpr(network.apply_fn)(
                network.variables, jax.tree.map(_as_batch(_BATCH_SIZE), images)
            )
        except Exception as error:
            error.add_note(f"ghn_jax traced the network with a batch of {_BATCH_SIZE} images.")
            raise
    return network, jaxpr


def _as_batch(size):
    def shape(x):
        if not getattr(x, "shape", ()):
            raise ValueError(f"images has a leaf {x!r}, expected arrays with a batch axis")
        return jax.ShapeDtypeStruct((size or x.shape[0], *x.shape[1:]), x.dtype)

    return shape


def read_graph(
    network: Network, jaxpr: Any, num_classes: int | None = None, max_distance: int = 50
) -> TracedNetwork:
    """Read the graph off a network's jaxpr; arguments as of `trace`."""
    builder = GraphBuilder(_BATCH_SIZE)
    leaves = jax.tree.leaves(network.variables)
    num_images = len(jaxpr.in_avals) - len(leaves)
    inputs: list[Value] = []
    for index, (leaf, is_parameter) in enumerate(zip(leaves, network.is_parameter, strict=True)):
        if is_parameter:
            inputs.append(Weight(frozenset({index}), (View(index, tuple(leaf.shape)),)))
        else:
            inputs.append(Constant(is_state=True))
    inputs += [Data((0,))] * num_images
    outputs = [x for x in interpret(builder, jaxpr, inputs) if isinstance(x, Data)]
    if not outputs:
        raise ValueError("the network's output does not depend on images, expected one that does")
    built = builder.finish(
        [builder.node_of(x) for x in outputs],
        network.paths,
        [tuple(leaf.shape) for leaf in leaves],
        num_classes,
        max_distance,
    )
    kept = {
        index: reason if network.is_parameter[index] or reason != NO_USE else STATE
        for index, reason in built.kept.items()
    }
    return TracedNetwork(network, built.graph, built.views, kept)
