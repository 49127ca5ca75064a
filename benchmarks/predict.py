"""Time the steps from a network to its parameters: building the graph and predicting.

    python benchmarks/predict.py [--models resnet50 convnext_l vit_l16] [--cold]

The GHN is a GHN-2 for ImageNet (random parameters, max shape (64, 64, 16, 16)). Most of the graph's
time is Flax and JAX tracing the network: "flax" is `jax.eval_shape(module.init)` alone, which any
use of the network needs. "GB" is the process's peak memory so far. With --cold, the script runs two
fresh processes per network and reports the second one, which has a filled compilation cache; its
time is from `import ghn_jax` to the parameters.

Measured on 2 cores, JAX 0.10.2 (graph, flax, warm prediction): ResNet-50 0.10, 0.10, 0.017 s, and
2.2 s cold, of which imports and drawing the GHN's parameters take 1.6 s. Before the models had
their own batch norm: ConvNeXt-L 0.25, 0.23, 0.08 s, and ViT-L/16 0.43, 0.34, 0.22 s.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ghn_jax.arrays import PyTree
from ghn_jax.hypernetworks import ghn2
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.models import MODELS, build
from ghn_jax.tracing import fill_variables, make_report, trace

IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
CONFIG = ghn2(num_classes=1000, max_shape=(64, 64, 16, 16))
COLD = """
import time
start = time.perf_counter()
import jax
import jax.numpy as jnp
from ghn_jax.programs.cache import enable_compilation_cache
from ghn_jax.hypernetworks import ghn2
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.models import build
from ghn_jax.prediction import predict_network
enable_compilation_cache({cache!r})
predictor = Predictor(ghn2(num_classes=1000, max_shape=(64, 64, 16, 16)))
ghn_params = predictor.init(jax.random.key(0))
drawn = time.perf_counter()
images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
predict_network(predictor, ghn_params, build({model!r}), images)
done = time.perf_counter()
print(done - start, drawn - start)
"""


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet50"], choices=MODELS)
    parser.add_argument("--cold", action="store_true", help="Also time fresh processes.")
    arguments = parser.parse_args()
    predictor = Predictor(CONFIG)
    ghn_params = predictor.init(jax.random.key(0))
    print(f"{jax.devices()[0].device_kind}, {jax.__version__}; seconds, the least of 5 when warm")
    header = ("network", "parameters", "predicted", "nodes", "graph", "flax", "first", "warm", "GB")
    print("{:>16}{:>13}{:>10}{:>7}{:>8}{:>8}{:>8}{:>8}{:>6}".format(*header))
    for name in arguments.models:
        print(measure(name, predictor, ghn_params), flush=True)
    if arguments.cold:
        for name in arguments.models:
            total, before = measure_cold(name)
            print(f"{name}: {total:.2f} s from import to parameters, {before:.2f} s of it for"
                  " imports and drawing the GHN's parameters")  # fmt: skip


def measure(name: str, predictor: Predictor, ghn_params: PyTree) -> str:
    """Time one network, and return its line of the table."""
    module = build(name)
    trace(module, IMAGES)  # lets JAX cache its own functions
    graph_seconds, traced = best_of(lambda: trace(module, IMAGES, num_classes=1000))
    flax_seconds, _ = best_of(lambda: jax.eval_shape(module.init, jax.random.key(0), IMAGES))

    def predict() -> PyTree:
        (arrays,) = predictor.predict(ghn_params, predictor.prepare([traced.graph]))
        return fill_variables(traced, arrays)

    start = time.perf_counter()
    predict()
    first = time.perf_counter() - start
    warm, _ = best_of(predict)
    report = make_report(traced)
    share = report.num_predicted / report.num_parameters
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{name:>16}{report.num_parameters:>13,}{share:>10.2%}{traced.graph.num_nodes:>7}"
        f"{graph_seconds:>8.3f}{flax_seconds:>8.3f}{first:>8.2f}{warm:>8.3f}{memory:>6.2f}"
    )


def best_of(function: Callable[[], Any], repeats: int = 5) -> tuple[float, Any]:
    """Call a function several times; return the fewest seconds and a result."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def measure_cold(name: str) -> tuple[float, float]:
    """Return the seconds of a second fresh process, in total and until the GHN is ready."""
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            code = COLD.format(cache=cache, model=name)
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
    total, before = done.stdout.split()
    return float(total), float(before)


if __name__ == "__main__":
    main()
