"""Parameters that are data themselves: positional encodings, class tokens, queries.

They become `pos_enc` nodes without incoming edges (docs/method.md, 'Graph').
"""

import math

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.values import Data, Weight
from ghn_jax.tracing.views import View


def add_position(builder: GraphBuilder, view: View, channels: int | None = None) -> int:
    """Add the node of a positional encoding.

    Args:
        builder: Builds the graph.
        view: (n, C) tokens, or (h, w, C) or (C, h, w) pixels, possibly with further axes of size 1.
        channels: Number of channels C, which identifies their axis; None means the last axis.

    Returns:
        The node's index.
    """
    shape = tuple(size for size in view.shape if size > 1) or (1,)
    view = view.reshape(shape)
    axis = len(shape) - 1
    if channels in shape and shape[-1] != channels:
        axis = shape.index(channels)
    view = view.transpose((*(i for i in range(len(shape)) if i != axis), axis))
    *sizes, channels = view.shape
    if len(sizes) == 2:
        view = view.reshape((1, *sizes, channels))
    else:
        count = math.prod(sizes)
        side = math.isqrt(count)
        view = view.reshape((count, channels))
        view = view.reshape((1, 1, 1, channels)) if count == 1 else view.shrink(side)
    _, height, width, _ = view.shape
    node = builder.node("pos_enc", (), (1, channels, height, width))
    builder.claim(view, node, "position")
    return node


def as_data(builder: GraphBuilder, weight: Weight) -> Data:
    """Return the parameter as the tokens that the network computes on."""
    nodes = [add_position(builder, view) for view in weight.views]
    return Data((builder.merge("sum", nodes),))


def choose(builder: GraphBuilder, data: Data, choice: Data) -> Data:
    """Return data that other data choose from, as a mask, an index or a router does.

    A choice that the data come from themselves, such as a mask of padding, is no node; any other
    is a gate, by which its parameters take part.
    """
    if builder.leads_to(choice.nodes, data.nodes):
        return data
    if data.is_product:
        return join_product(builder, "mul", data, choice)
    return Data((builder.node("cse", (builder.node_of(data), builder.node_of(choice))),))


def join_product(builder: GraphBuilder, name: str, left: Data, right: Data) -> Data:
    """Return a product of two activations combined with other data, still a product."""
    nodes = tuple(dict.fromkeys((*left.nodes, *right.nodes)))
    parents = (builder.node_of(left), builder.node_of(right))
    node = builder.merge("cse" if name in ("mul", "div") else "sum", parents)
    logits = builder.logits(left) | builder.logits(right)
    builder.settle(nodes, node, logits)
    return Data(nodes, is_product=True)
