"""Time each implementation of a convolution, forward and gradient, by shape.

    python benchmarks/operations.py [--batch_size 64]

`ghn_jax.targets.operations` chooses between them by this table. Rows are ratios to the native
operation of the same run: below 1 is faster.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from ghn_jax.compilation import build_vjp, compile_lowered  # noqa: E402
from ghn_jax.targets import operations  # noqa: E402

LAYOUT = ("NHWC", "HWIO", "NHWC")
# (image size, channels in, channels out, kernel, stride); depthwise where channels out is 0.
SHAPES = [
    (size, channels, channels, kernel, stride)
    for size, channels in ((8, 16), (4, 32), (2, 64), (32, 32))
    for kernel in (1, 3, 5, 7)
    for stride in (1, 2)
] + [(8, 16, 0, 3, 1), (8, 16, 0, 5, 1), (32, 32, 0, 3, 1), (32, 32, 0, 5, 2)]


def native(stride: int, groups: int) -> Callable:
    """XLA's convolution."""

    def convolve(x, kernel):
        padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=LAYOUT,
            feature_group_count=groups,
        )

    return convolve


def implementations(size, channels_out, channels, kernel, stride) -> dict[str, Callable]:
    """All implementations that make sense for a shape, the native one first."""
    strides = (stride, stride)
    if channels_out == 0:
        shifted = lambda x, w: operations.convolve_depthwise(x, w, stride)  # noqa: E731
        return {"native": native(stride, channels), "shifted products": shifted}
    found = {"native": native(stride, 1)}
    if kernel == 1:
        found["product"] = lambda x, w: operations.convolve(x, w, strides)
    else:
        found["patches"] = lambda x, w: operations._convolve_by_patches(x, w, strides)
        if size <= 8:
            found["dense matrix"] = lambda x, w: operations._convolve_by_dense_matrix(x, w, strides)
    return found


def time_vjp(fn: Callable, x, kernel, repeats: int = 7) -> tuple[float, float]:
    """Median seconds of forward plus gradient, and seconds of compilation."""
    start = time.perf_counter()
    programs = build_vjp(fn, (x, kernel), 2)
    backward = compile_lowered(programs.lower_backward())
    compilation = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        output, residuals = programs.forward(x, kernel)
        jax.block_until_ready(backward((x, kernel), residuals, output))
        times.append(time.perf_counter() - start)
    return statistics.median(times), compilation


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=64, help="Images per batch.")
    batch_size = parser.parse_args().batch_size
    table = Table(title=f"forward + gradient, batch {batch_size}, {jax.default_backend()}")
    for column in ("shape", "implementation", "ms", "of native", "compilation, s"):
        table.add_column(column, justify="left" if column == "shape" else "right")
    for size, channels, channels_out, kernel, stride in SHAPES:
        x = jnp.ones((batch_size, size, size, channels))
        shape = (kernel, kernel, channels if channels_out else 1, channels_out or channels)
        weights = jnp.ones(shape)
        kind = "" if channels_out else " depthwise"
        name = f"{size}x{size}x{channels} {kernel}x{kernel}/{stride}{kind}"
        base = None
        for label, fn in implementations(size, channels_out, channels, kernel, stride).items():
            seconds, compilation = time_vjp(fn, x, weights)
            base = base or seconds
            ratio = f"{seconds / base:.2f}"
            table.add_row(name, label, f"{1e3 * seconds:.2f}", ratio, f"{compilation:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
