"""A cache of compiled programs, keyed by signature, compiled in parallel threads and counted."""

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
# less optimisation, and without the newer fusion pipeline, they compile in half the time and run
# just as fast (`benchmarks/compilation.py`). Since JAX 0.11, the newer pipeline is XLA's only one.
_CPU_COMPILER_OPTIONS: dict[str, Any] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def cpu_compiler_options() -> dict[str, Any]:
    """Return the options for compiling short programs for CPUs, those the installed XLA knows."""
    return {name: v for name, v in _CPU_COMPILER_OPTIONS.items() if knows_option(name, v)}


def knows_option(name: str, value: Any) -> bool:
    """Return whether the installed XLA accepts an option; releases add and drop them."""
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
    """Let the C library keep freed memory instead of returning it to the system (CPU, glibc).

    XLA's CPU backend allocates every result with `malloc`. By default glibc maps results of several
    megabytes anew each time, and every page of them faults on first use: adding 1 to a 30 MB array
    takes 13 ms this way, but 2 ms in memory that was used before.

    Args:
        num_bytes: The most free memory to keep, and the size from which a single result is mapped.

    Returns:
        Whether the C library accepted all settings.
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
        (arena_max, 1),  # one thread can use what another one freed
    )
    return all([mallopt(name, value) for name, value in settings])


def enable_compilation_cache(directory: str | Path) -> None:
    """Keep compiled programs on disk, so that the next process does not compile them again.

    Args:
        directory: The folder of the cache, created if it does not exist.
    """
    path = Path(directory).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def compile_lowered(
    lowered: jax.stages.Lowered, has_large_fusions: bool = False
) -> jax.stages.Compiled:
    """Compile a program with the options that suit the backend.

    Args:
        lowered: The lowered program.
        has_large_fusions: Whether the program spends its time in elementwise operations on large
            arrays, for which XLA's own options are worth the longer compilation.

    Returns:
        The compiled program.
    """
    is_short = jax.default_backend() == "cpu" and not has_large_fusions
    return lowered.compile(compiler_options=cpu_compiler_options() if is_short else None)


def lower_shapes(fn: Callable, arguments: tuple, donates: bool = False) -> jax.stages.Lowered:
    """Lower a function for the default device, reading only the shapes of its arguments.

    Args:
        fn: The function to lower.
        arguments: Its arguments: trees of arrays, on any device, or of `jax.ShapeDtypeStruct`s.
        donates: Whether the program may reuse the memory of the first argument.

    Returns:
        The lowered program.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return jax.jit(fn, donate_argnums=(0,) if donates else ()).lower(*shapes)


@dataclasses.dataclass(frozen=True)
class VjpPrograms:
    """A function and its gradient as two programs, which any number of calls can share.

    Attributes:
        forward: The program that maps the arguments to (output, residuals).
        lower_backward: Lowers the program that maps (arguments, residuals, cotangent of the output)
            to the cotangents of the differentiated arguments. With `accumulates`, that program
            takes such cotangents as a fourth argument, adds to them and may reuse their memory.
    """

    forward: jax.stages.Compiled
    lower_backward: Callable[..., jax.stages.Lowered]


def build_vjp(fn: Callable, arguments: tuple, num_differentiated: int) -> VjpPrograms:
    """Compile a function such that another program can compute its gradient later.

    Args:
        fn: The function to compile.
        arguments: Its arguments: trees of arrays or of `jax.ShapeDtypeStruct`s.
        num_differentiated: Number of leading arguments to differentiate with respect to.

    Returns:
        The compiled forward program, and how to lower the backward one.
    """
    # Set while `forward` is traced: the tree of residuals, and which argument each leaf of it is.
    residual_tree: tuple[Any, list[int | None]]

    def forward(*args: Any) -> tuple[Any, list[jax.Array]]:
        nonlocal residual_tree
        differentiated, others = args[:num_differentiated], args[num_differentiated:]
        output, pull_back = jax.vjp(lambda *first: fn(*first, *others), *differentiated)
        leaves, tree = jax.tree.flatten(pull_back)
        # Arguments that the gradient needs are not stored a second time.
        given = jax.tree.leaves(args)
        sources = [next((i for i, x in enumerate(given) if x is leaf), None) for leaf in leaves]
        residual_tree = (tree, sources)
        return output, [
            leaf for leaf, source in zip(leaves, sources, strict=True) if source is None
        ]

    def backward(args: tuple, residuals: list[jax.Array], cotangent: Any) -> tuple:
        tree, sources = residual_tree
        given, stored = jax.tree.leaves(args), iter(residuals)
        leaves = [next(stored) if source is None else given[source] for source in sources]
        return jax.tree.unflatten(tree, leaves)(cotangent)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    lowered = jax.jit(forward).lower(*shapes)
    output, residuals = lowered.out_info

    def add_backward(
        args: tuple, residuals: list[jax.Array], cotangent: Any, totals: tuple
    ) -> tuple:
        return jax.tree.map(jnp.add, totals, backward(args, residuals, cotangent))

    def lower_backward(accumulates: bool = False) -> jax.stages.Lowered:
        # Unused arguments stay in the signature, so that all backward programs are called alike.
        if not accumulates:
            return jax.jit(backward, keep_unused=True).lower(shapes, residuals, output)
        jitted = jax.jit(add_backward, keep_unused=True, donate_argnums=3)
        return jitted.lower(shapes, residuals, output, shapes[:num_differentiated])

    return VjpPrograms(compile_lowered(lowered), lower_backward)


class ProgramCache:
    """A cache of programs by key, each built once; threads that ask while it is built wait.

    Args:
        num_threads: Number of programs that compile at the same time.

    Attributes:
        num_compilations: Number of programs built so far.
    """

    def __init__(self, num_threads: int = 2) -> None:
        self.num_compilations = 0
        self._futures: dict[Hashable, Future] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="compile")

    def __contains__(self, key: Hashable) -> bool:
        return key in self._futures

    def get(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """Return the program cached under `key`, calling `build()` if there is none."""
        future = self._futures.get(key)
        if future is None:
            future = self.submit(key, build)
        return future.result()

    def build_here(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """Like `get`, but build in the calling thread, for a program that another one needs."""
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
        """Build a program for another device than the cache's, without keeping it."""
        with self._lock:
            self.num_compilations += 1
        return build()

    def submit(self, key: Hashable, build: Callable[[], Any]) -> Future:
        """Start building the program for `key` unless it is already built or being built."""
        with self._lock:
            future = self._futures.get(key)
            if future is None:
                self.num_compilations += 1
                future = self._futures[key] = self._pool.submit(build)
        return future

    def wait(self, keys: Iterable[Hashable]) -> None:
        """Wait until the programs for `keys` are built."""
        for key in keys:
            self._futures[key].result()
