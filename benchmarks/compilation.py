"""Compile the blocks of a few architectures under different compiler options (CPU).

    python benchmarks/compilation.py [--num_programs 40]

For each set of options, the script prints the CPU milliseconds per compiled program, and the time
for running all programs, both also as ratios to XLA's defaults in the same run.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ghn_jax.programs import cache as compilation
from ghn_jax.sampling import ArchitectureStream, SpaceConfig
from ghn_jax.targets.plan import lower

OPTIONS: dict[str, dict] = {
    "XLA's defaults": {},
    "ours": compilation.cpu_compiler_options(),
    "optimization level 0": {"xla_backend_optimization_level": 0},
    "optimization level 1": {"xla_backend_optimization_level": 1},
    "optimization level 2": {"xla_backend_optimization_level": 2},
    # Until JAX 0.10.
    "no fusion emitters": {"xla_cpu_use_fusion_emitters": False},
    "level 0, no fusion emitters": {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
    },
    # Since JAX 0.11.
    "old tile lowering": {"xla_cpu_use_new_xtile_lowering": False},
    "level 1, old tile lowering": {
        "xla_backend_optimization_level": 1,
        "xla_cpu_use_new_xtile_lowering": False,
    },
    "level 1, new tile lowering": {
        "xla_backend_optimization_level": 1,
        "xla_cpu_use_new_xtile_lowering": True,
    },
}


Functions = list[tuple[Callable, tuple]]


def block_functions(num_programs: int, batch_size: int) -> Functions:
    """Return the functions of different blocks in a stream of architectures, with arguments."""
    space = SpaceConfig(widths=(16,), image_size=8)
    rng, seen = np.random.default_rng(0), {}
    for architecture in ArchitectureStream(space, 0):
        plan = lower(architecture, space.image_size, space.num_classes)
        shapes = [(8, 8, 3), *(call.output_shape for call in plan.calls)]
        for call in plan.calls:
            inputs = [shapes[i] for i in call.inputs]
            key = (call.block, tuple(inputs))
            if key in seen or not call.tensors:
                continue
            arrays = [rng.standard_normal((batch_size, *s), dtype=np.float32) for s in inputs]
            params = call.block.init(jax.random.key(0), *arrays)["params"]
            seen[key] = (lambda p, x, b=call.block: b.apply({"params": p}, *x), (params, arrays))
            if len(seen) == num_programs // 2:
                return list(seen.values())
    raise AssertionError("the stream is endless")


def measure(functions: Functions, options: dict) -> tuple[float, float]:
    """Return CPU seconds to compile a program, and wall seconds to run all of them five times."""
    compilation.cpu_compiler_options = lambda: options  # type: ignore[assignment]
    start, programs = time.process_time(), []
    for fn, arguments in functions:
        pair = compilation.build_vjp(fn, arguments, 2)
        backward = compilation.compile_lowered(pair.lower_backward())
        programs.append((pair.forward, backward, arguments))
    cpu = (time.process_time() - start) / (2 * len(functions))
    start = time.perf_counter()
    for _ in range(5):
        for forward, backward, arguments in programs:
            output, residuals = forward(*arguments)
            jax.block_until_ready(backward(arguments, residuals, output))
    return cpu, time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_programs", type=int, default=40, help="Programs to compile.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images per batch.")
    arguments = parser.parse_args()
    functions = block_functions(arguments.num_programs, arguments.batch_size)
    measure(functions[:2], {})  # the first compilation starts LLVM
    table = Table(title=f"{arguments.num_programs} programs of blocks, width 16, 8x8 images")
    for column in ("options", "CPU ms per program", "of defaults", "running, of defaults"):
        table.add_column(column, justify="left" if column == "options" else "right")
    base = None
    for name, options in OPTIONS.items():
        if not all(compilation.knows_option(*option) for option in options.items()):
            continue
        cpu, running = measure(functions, options)
        base = base or (cpu, running)
        ratios = (f"{cpu / base[0]:.2f}", f"{running / base[1]:.2f}")
        table.add_row(name, f"{1e3 * cpu:.0f}", *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
