"""Graphs of target networks: what a GHN reads."""

from ghn_jax.graphs.arch_graph import ArchGraph, build_graph, graph_from_nodes
from ghn_jax.graphs.batching import GraphBatch, batch_graphs, to_graphs_tuple
from ghn_jax.graphs.primitives import PRIMITIVES
from ghn_jax.graphs.schedule import schedule_nodes
from ghn_jax.targets.tracing import ParameterTensor

__all__ = [
    "PRIMITIVES",
    "ArchGraph",
    "GraphBatch",
    "ParameterTensor",
    "batch_graphs",
    "build_graph",
    "graph_from_nodes",
    "schedule_nodes",
    "to_graphs_tuple",
]
