"""Graphs of small networks in a form that a test can spell out."""

import jax
import jax.numpy as jnp

from ghn_jax.graphs import PRIMITIVES
from ghn_jax.tracing import make_report, trace


def shapes(**named):
    """Shapes of float32 arrays by name."""
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in named.items()}


def describe(traced):
    """(primitive, parameter shape, parents' primitives) of every node but the input, sorted."""
    graph = traced.graph
    own = graph.distance == 1
    nodes = []
    for node in range(graph.num_nodes):
        parents = graph.senders[own & (graph.receivers == node)]
        names = [PRIMITIVES[graph.primitive[p]] for p in parents]
        shape = tuple(graph.shape[node].tolist())
        nodes.append((PRIMITIVES[graph.primitive[node]], shape, tuple(sorted(names))))
    assert nodes[0] == ("input", (0, 0, 0, 0), ())
    return sorted(nodes[1:])


def tensors(traced):
    """Shape and role of every predicted tensor by path."""
    return {"/".join(t.path): (t.shape, t.role) for t in traced.graph.tensors}


def trace_function(function, images, **params):
    """Trace a function of parameters with the given shapes, and of images."""
    return trace(function, images, params=shapes(**params))


def kept(traced):
    """The reason for every leaf that is not predicted."""
    return make_report(traced).kept
