"""Compiled programs, keyed by bounded signatures, compiled in parallel threads and counted."""

import ctypes
import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

# Blocks spend their time in convolutions and matrix products, which LLVM does not optimise. With
# less optimisation, and without the newer pipeline for fusions, they compile in half the time and
# run as fast (`benchmarks/compilation.py`). XLA has no other pipeline since JAX 0.11.
_CPU_COMPILER_OPTIONS: dict[str, Any] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def cpu_compiler_options() -> dict[str, Any]:
    """Options with which short programs compile for CPUs, as many as the installed XLA knows."""
    return {name: v for name, v in _CPU_COMPILER_OPTIONS.items() if knows_option(name, v)}


def knows_option(name: str, value: Any) -> bool:
    """Whether the installed XLA compiles with an option; releases add and drop them."""
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        trivial = jax.jit(lambda: jnp.zeros(())).lower()
    try:
        trivial.compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.cache
def keep_freed_memory(num_bytes: int = 2**30) -> bool:
    """Let the C library keep freed memory instead of handing it back to the system (CPU, glibc).

    XLA's CPU backend takes the memory of every result from `malloc`. By default glibc maps results
    of some megabytes anew each time, and every page of them faults on first use: adding one to a
    30 MB array takes 13 ms that way, and 2 ms in memory used before.

    Args:
        num_bytes: Most free memory kept, and the size from which single results are mapped.

    Returns:
        Whether the C library has these settings.
    """
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8  # <malloc.h>
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (trim_threshold, num_bytes),
        (mmap_threshold, num_bytes),
        (top_pad, 2**27),
        (arena_max, 1),  # what one thread frees another one uses
    )
    return all([mallopt(name, value) for name, value in settings])


def enable_compilation_cache(directory: str | Path) -> None:
    """Keep compiled programs on disk, so that the next process does not compile them again.

    Args:
        directory: Created if it does not exist.
    """
    path = Path(directory).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def compile_lowered(
    lowered: jax.stages.Lowered, has_large_fusions: bool = False
) -> jax.stages.Compiled:
    """Compile with the options that suit the backend.

    Args:
        lowered: The program.
        has_large_fusions: Whether it spends its time in elementwise operations on large arrays, for
            which XLA's own options are worth the longer compilation.

    Returns:
        The compiled program.
    """
    is_short = jax.default_backend() == "cpu" and not has_large_fusions
    return lowered.compile(compiler_options=cpu_compiler_options() if is_short else None)


def lower_shapes(fn: Callable, arguments: tuple, donates: bool = False) -> jax.stages.Lowered:
    """Lower for the default device, wherever the arguments are: only their shapes are read.

    Args:
        fn: Takes `arguments`.
        arguments: Trees of arrays or `jax.ShapeDtypeStruct`.
        donates: Whether the program may use the memory of the first argument.

    Returns:
        The program, to be compiled.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return jax.jit(fn, donate_argnums=(0,) if donates else ()).lower(*shapes)


@dataclasses.dataclass(frozen=True)
class VjpPrograms:
    """A function and its gradient as two programs that any number of calls share.

    Attributes:
        forward: From the arguments to (output, residuals).
        lower_backward: Lowers the program from (arguments, residuals, cotangent of the output) to
            the cotangents of the differentiated arguments; with `accumulates`, the program takes
            such cotangents as a fourth argument, whose memory it may use, and adds to them.
    """

    forward: jax.stages.Compiled
    lower_backward: Callable[..., jax.stages.Lowered]


def build_vjp(fn: Callable, arguments: tuple, num_differentiated: int) -> VjpPrograms:
    """Compile a function such that its gradient can be computed later, by another program.

    Args:
        fn: Takes `arguments`.
        arguments: Trees of arrays or `jax.ShapeDtypeStruct`.
        num_differentiated: How many of the first arguments the gradient is for.

    Returns:
        The forward program, and how to lower the backward one.
    """
    residual_tree = None  # set while tracing

    def forward(*args):
        nonlocal residual_tree
        differentiated, others = args[:num_differentiated], args[num_differentiated:]
        output, pull_back = jax.vjp(lambda *first: fn(*first, *others), *differentiated)
        leaves, tree = jax.tree.flatten(pull_back)
        # What the gradient needs of the arguments need not be stored again.
        given = jax.tree.leaves(args)
        sources = [next((i for i, x in enumerate(given) if x is leaf), None) for leaf in leaves]
        residual_tree = (tree, sources)
        return output, [
            leaf for leaf, source in zip(leaves, sources, strict=True) if source is None
        ]

    def backward(args, residuals, cotangent):
        tree, sources = residual_tree
        given, stored = jax.tree.leaves(args), iter(residuals)
        leaves = [next(stored) if source is None else given[source] for source in sources]
        return jax.tree.unflatten(tree, leaves)(cotangent)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    lowered = jax.jit(forward).lower(*shapes)
    output, residuals = lowered.out_info

    def add_backward(args, residuals, cotangent, totals):
        return jax.tree.map(jnp.add, totals, backward(args, residuals, cotangent))

    def lower_backward(accumulates: bool = False):
        # Arguments that only the forward program reads stay in the signature: calls look the same.
        if not accumulates:
            return jax.jit(backward, keep_unused=True).lower(shapes, residuals, output)
        jitted = jax.jit(add_backward, keep_unused=True, donate_argnums=3)
        return jitted.lower(shapes, residuals, output, shapes[:num_differentiated])

    return VjpPrograms(compile_lowered(lowered), lower_backward)


class ProgramCache:
    """Programs by signature. Each is built once, by the thread that asks first; others wait.

    Args:
        num_threads: How many programs compile at the same time.

    Attributes:
        num_compilations: How many programs were built so far.
    """

    def __init__(self, num_threads: int = 2) -> None:
        self.num_compilations = 0
        self._futures: dict[Hashable, Future] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="compile")

    def __contains__(self, key: Hashable) -> bool:
        return key in self._futures

    def get(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """Return the program of `key`, built by `build()` if it is not there."""
        future = self._futures.get(key)
        if future is None:
            future = self.submit(key, build)
        return future.result()

    def build_here(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """Like `get`, but build in the calling thread: for a program another one is built from."""
        with self._lock:
            future = self._futures.get(key)
            if future is None:
                self.num_compilations += 1
                mine = self._futures[key] = Future()
        if future is not None:
            return future.result()
        try:
            mine.set_result(build())
        except BaseException as error:
            mine.set_exception(error)
        return mine.result()

    def build_again(self, build: Callable[[], Any]) -> Any:
        """Build a program that is not kept: for another device than the cache's."""
        with self._lock:
            self.num_compilations += 1
        return build()

    def submit(self, key: Hashable, build: Callable[[], Any]) -> Future:
        """Start building the program of `key` unless it is there or under way."""
        with self._lock:
            future = self._futures.get(key)
            if future is None:
                self.num_compilations += 1
                future = self._futures[key] = self._pool.submit(build)
        return future

    def wait(self, keys: Iterable[Hashable]) -> None:
        """Wait until the programs of `keys` are built."""
        for key in keys:
            self._futures[key].result()
