"""Graphs of target networks, which are a GHN's input."""

from ghn_jax.graphs.arch_graph import ArchGraph, graph_from_nodes
from ghn_jax.graphs.batching import GraphBatch, batch_graphs
from ghn_jax.graphs.primitives import PRIMITIVES
from ghn_jax.graphs.schedule import schedule_nodes
from ghn_jax.graphs.schema import ParameterTensor, TracedNode

__all__ = [
    "PRIMITIVES",
    "ArchGraph",
    "GraphBatch",
    "ParameterTensor",
    "TracedNode",
    "batch_graphs",
    "graph_from_nodes",
    "schedule_nodes",
]
