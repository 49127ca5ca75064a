"""From any JAX network to its graph: trace the computation, read the graph off the jaxpr.

In: a network of any library and the shape of its images. Out: an `ArchGraph`, and where each of its
tensors lies in the network's parameters. A table maps primitives to rules; `register_rule` extends
it.
"""

from ghn_jax.tracing.batch_stats import calibrate_batch_stats
from ghn_jax.tracing.frontends import describe
from ghn_jax.tracing.prediction import (
    NetworkPrediction,
    Report,
    UnpredictedError,
    make_report,
    predict_network,
)
from ghn_jax.tracing.registry import register_rule
from ghn_jax.tracing.traced_network import TracedNetwork, trace
from ghn_jax.tracing.values import Constant, Data, Weight

__all__ = [
    "Constant",
    "Data",
    "NetworkPrediction",
    "Report",
    "TracedNetwork",
    "UnpredictedError",
    "Weight",
    "calibrate_batch_stats",
    "describe",
    "make_report",
    "predict_network",
    "register_rule",
    "trace",
]
