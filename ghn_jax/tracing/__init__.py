"""From any JAX network to its graph: trace the computation, read the graph off the jaxpr.

In: a network of any library and the shape of its images. Out: an `ArchGraph`, where each of its
tensors lies in the network's parameters, and which parameters have none. A table maps primitives to
rules; `register_rule` extends it.
"""

from ghn_jax.tracing.batch_stats import calibrate_batch_stats
from ghn_jax.tracing.frontends import describe
from ghn_jax.tracing.registry import register_rule
from ghn_jax.tracing.report import Report, make_report
from ghn_jax.tracing.traced_network import TracedNetwork, fill_variables, trace
from ghn_jax.tracing.values import Constant, Data, Weight

__all__ = [
    "Constant",
    "Data",
    "Report",
    "TracedNetwork",
    "Weight",
    "calibrate_batch_stats",
    "describe",
    "fill_variables",
    "make_report",
    "register_rule",
    "trace",
]
