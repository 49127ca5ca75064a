"""Time every implementation of an operation, forward and gradient, for many shapes.

    python benchmarks/ops.py [--batch_size 64] [--match 32x32]

The choices in `ghn_jax.targets` are based on this table. Ratios are relative to the native
operation in the same run, so below 1 is faster. "plain" is what a user's network runs; "ours" is
what the engine runs, with handwritten gradients.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from ghn_jax.programs.cache import build_vjp, compile_lowered, keep_freed_memory
from ghn_jax.targets.cpu import convolution
from ghn_jax.targets.operations import NATIVE
from ghn_jax.targets.spelling import default_operations, operations_with_adjoints

# (image size, channels in, channels out, kernel, stride); depthwise if channels out is 0.
CONVOLUTIONS = [
    (size, channels, channels, kernel, stride)
    for size, channels in ((8, 16), (4, 32), (2, 64), (16, 32), (8, 128), (32, 32))
    for kernel in (1, 3, 5, 7)
    for stride in (1, 2)
]
DEPTHWISE = [(8, 16, 0, 3, 1), (8, 16, 0, 5, 1), (16, 32, 0, 5, 1), (32, 32, 0, 5, 2)]

Implementations = dict[str, Callable]
Case = tuple[str, Implementations, tuple]

PLAIN, OURS = default_operations(), operations_with_adjoints()


def convolution_cases(batch_size: int) -> Iterator[Case]:
    """Yield the name, implementations and arguments of every convolution."""
    for shape in CONVOLUTIONS + DEPTHWISE:
        size, channels, channels_out, kernel, stride = shape
        kind = "" if channels_out else " depthwise"
        name = f"{size}x{size}x{channels} {kernel}x{kernel}/{stride}{kind}"
        yield name, *convolutions(batch_size, *shape)


def convolutions(
    batch_size: int, size: int, channels: int, channels_out: int, kernel: int, stride: int
) -> tuple[Implementations, tuple]:
    """Return all implementations that make sense for a shape, native first, and arguments."""
    x = jnp.ones((batch_size, size, size, channels))
    if channels_out == 0:
        weights = jnp.ones((kernel, kernel, 1, channels))
        return spellings("convolve_depthwise", stride, 1, True), (x, weights)
    weights = jnp.ones((kernel, kernel, channels, channels_out))
    strides = (stride, stride)
    found = spellings("convolve", strides, True)
    if kernel > 1:
        patches = convolution.convolve_by_patches
        found["patches"] = lambda x, w: patches(jax.nn.relu(x), w, strides)
        if size <= 8 and channels <= 64:
            dense = convolution.convolve_by_dense_matrix
            found["dense matrix"] = lambda x, w: dense(jax.nn.relu(x), w, strides)
    return found, (x, weights)


def others(batch_size: int) -> Iterator[Case]:
    """Yield the name, implementations and arguments of pools, norms and attention."""
    for size, channels, stride in ((16, 32, 1), (11, 128, 1), (32, 96, 2)):
        x = jax.random.normal(jax.random.key(0), (batch_size, size, size, channels))
        yield f"{size}x{size}x{channels} max pool/{stride}", spellings("max_pool", stride), (x,)
    for size, channels in ((16, 32), (32, 96)):
        x = jax.random.normal(jax.random.key(0), (batch_size, size, size, channels))
        ones = jnp.ones(channels)
        yield f"{size}x{size}x{channels} batch norm", spellings("batch_norm", 1e-5), (x, ones, ones)
    for channels in (32, 128):
        x = jax.random.normal(jax.random.key(0), (batch_size, 121, 3 * channels))
        yield f"121 tokens, {channels} channels attention", spellings("attend", 8), (x,)


def spellings(name: str, *settings: Any) -> Implementations:
    """Return an operation's native spelling, the one in users' networks, and the engine's."""
    found: Implementations = {}
    for label, operations in (("native", NATIVE), ("plain", PLAIN), ("ours", OURS)):
        fn = getattr(operations, name)
        if fn not in found.values():
            found[label] = fn
    return {label: lambda *x, fn=fn: fn(*x, *settings) for label, fn in found.items()}


def time_vjp(fn: Callable, arguments: tuple, repeats: int = 7) -> tuple[float, float]:
    """Return the median seconds of forward plus gradient, and the seconds of compilation."""
    start = time.perf_counter()
    programs = build_vjp(fn, arguments, len(arguments))
    backward = compile_lowered(programs.lower_backward())
    compilation = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        output, residuals = programs.forward(*arguments)
        jax.block_until_ready(backward(arguments, residuals, output))
        times.append(time.perf_counter() - start)
    return statistics.median(times), compilation


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=64, help="Images per batch.")
    parser.add_argument("--match", default="", help="Only rows whose name contains this.")
    flags = parser.parse_args()
    keep_freed_memory()
    table = Table(title=f"forward + gradient, batch {flags.batch_size}, {jax.default_backend()}")
    for column in ("operation", "implementation", "ms", "of native", "compilation, s"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    cases = [*convolution_cases(flags.batch_size), *others(flags.batch_size)]
    for name, implementations, arguments in cases:
        if flags.match not in name:
            continue
        base = None
        for label, fn in implementations.items():
            seconds, compilation = time_vjp(fn, arguments)
            base = base or seconds
            ratio = f"{seconds / base:.2f}"
            table.add_row(name, label, f"{1e3 * seconds:.2f}", ratio, f"{compilation:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
