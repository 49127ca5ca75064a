"""Fit the cost estimate that distributes architectures over devices to measured times.

    python benchmarks/balance.py [--num_architectures 32] [--image_size 32] [--batch_size 64]

The seconds of loss and gradients are fitted by three non-negative constants, those of
`ghn_jax/parallel/balance.py`: seconds per block, per multiplication and per element of the blocks'
outputs. The script prints them, and how well they and the constants in that file predict the
architectures left out of the fit (every second one).
"""

import argparse
import time

import jax
import numpy as np
from rich.progress import track
from sklearn.linear_model import LinearRegression

from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.parallel.balance import count_work, estimate_seconds
from ghn_jax.sampling import ArchitectureStream, SpaceConfig
from ghn_jax.targets.initialization import initialize_randomly
from ghn_jax.targets.plan import Plan, lower
from ghn_jax.tasks import Batch


def measure(engine: BlockwiseEngine, plan: Plan, batch: Batch) -> float:
    """Return the seconds of one architecture, the best of three runs after compiling."""
    params = initialize_randomly(plan, np.random.default_rng(0))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(engine.loss_and_grads([plan], [params], batch))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def main() -> None:
    """Measure, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_architectures", type=int, default=32, help="Number of networks.")
    parser.add_argument("--image_size", type=int, default=32, help="Image size, pixels.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images per batch.")
    arguments = parser.parse_args()
    size, batch_size = arguments.image_size, arguments.batch_size
    stream = ArchitectureStream(SpaceConfig(image_size=size), seed=0)
    plans = [lower(stream[i], size, 10) for i in range(arguments.num_architectures)]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, size, size, 3), np.float32)
    labels = rng.integers(0, 10, batch_size).astype(np.int32)
    batch = Batch(images, labels)
    engine = BlockwiseEngine()
    seconds = np.array([measure(engine, p, batch) for p in track(plans, "measuring")])
    work = np.array([count_work(plan, batch_size) for plan in plans], np.float64)
    # Relative errors count, because a small network matters to its device as much as a large one.
    weights = 1 / seconds[::2] ** 2
    fit = LinearRegression(fit_intercept=False, positive=True)
    fit.fit(work[::2] / work.max(0), seconds[::2], weights)
    constants = fit.coef_ / work.max(0)
    names = ("SECONDS_PER_CALL", "SECONDS_PER_MULTIPLICATION", "SECONDS_PER_ELEMENT")
    for name, value in zip(names, constants, strict=True):
        print(f"{name} = {value:.1e}")
    held_out = seconds[1::2]
    in_file = np.array([estimate_seconds(plan, batch_size) for plan in plans])[1::2]
    for name, estimate in (("fitted", work[1::2] @ constants), ("in the file", in_file)):
        correlation = np.corrcoef(np.log(estimate), np.log(held_out))[0, 1]
        print(f"{name}: correlation of logarithms {correlation:.3f} on {len(held_out)} others")


if __name__ == "__main__":
    main()
