"""Computations, each declared once, and the programs that their calls share.

A computation is declared as a function of a signature and arrays. The signature holds everything
that its programs depend on, including the shapes of the arrays; it is hashable, and equal for calls
that share programs. A call finds its program or waits until it is compiled; programs can also be
compiled ahead, in parallel threads. On devices other than the default one, the same declarations
run on copies of the same programs.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, TypedDict, Unpack

import jax

from ghn_jax.programs.cache import (
    ProgramCache,
    VjpPrograms,
    build_vjp,
    compile_lowered,
    lower_shapes,
)
from ghn_jax.programs.relocation import ProgramsOnDevice

Arguments = tuple[Any, ...]
"""Arguments of a call: trees of arrays, or of `jax.ShapeDtypeStruct`s to compile ahead."""
LazyArguments = Arguments | Callable[[], Arguments]
"""Arguments, or a function that returns them and is called only if a program must be built."""


class Compilation(NamedTuple):
    """A program that calls need: the key under which it is cached, and a function to build it."""

    key: Hashable
    build: Callable[[], Any]


class Selection(TypedDict, total=False):
    """Which programs `ProgramTable.warm_up` compiles, and how it reports progress.

    Attributes:
        coverage: Share of all calls whose programs are compiled, in 0..1; 0.99 by default.
        share: (i, n) to compile only every n-th of these programs, starting with the i-th.
        progress: Wraps the iteration over the awaited keys; called with the keys and their number.
    """

    coverage: float
    share: tuple[int, int]
    progress: Callable[[Iterable, int], Iterable]


class Computation:
    """A function that is compiled to one program per signature.

    Args:
        programs: The cache of programs.
        name: First part of the programs' keys.
        fn: The function, `fn(signature, *arguments)`; the signature is static.
        donates: Whether programs may reuse the memory of their first argument for the result.
    """

    def __init__(
        self,
        programs: ProgramCache | ProgramsOnDevice,
        name: str,
        fn: Callable[..., Any],
        donates: bool = False,
    ) -> None:
        self._programs = programs
        self._name = name
        self._fn = fn
        self._donates = donates

    def __call__(self, signature: Hashable, arguments: Arguments) -> Any:
        """Run the signature's program on the arguments."""
        build = lambda: self._build(signature, arguments)  # noqa: E731
        return self._programs.get((self._name, signature), build)(*arguments)

    def compilation(self, signature: Hashable, arguments: LazyArguments) -> Compilation:
        """Return the compilation that a call needs."""
        build = lambda: self._build(signature, arguments)  # noqa: E731
        return Compilation((self._name, signature), build)

    def _build(self, signature: Hashable, arguments: LazyArguments) -> jax.stages.Compiled:
        def fn(*arguments: Any) -> Any:
            return self._fn(signature, *arguments)

        return compile_lowered(lower_shapes(fn, _given(arguments), self._donates))


class DifferentiableComputation:
    """A function that is compiled to two programs per signature, forward and backward.

    Args:
        programs: The cache of programs.
        name: First part of the programs' keys.
        fn: The function, `fn(signature, *arguments)`; the signature is static.
        num_differentiated: Number of leading arguments to differentiate with respect to, or a
            function that returns it for a signature.
        accumulates: Whether backward programs add to given gradients, reusing their memory.
        has_large_fusions: Whether backward programs spend their time in elementwise operations on
            large arrays, see `compile_lowered`.
    """

    def __init__(
        self,
        programs: ProgramCache | ProgramsOnDevice,
        name: str,
        fn: Callable[..., Any],
        num_differentiated: int | Callable[[Any], int],
        accumulates: bool = False,
        has_large_fusions: bool = False,
    ) -> None:
        self._programs = programs
        self._forward_name, self._backward_name = name, f"{name} backward"
        self._fn = fn
        self._num_differentiated = num_differentiated
        self._accumulates = accumulates
        self._has_large_fusions = has_large_fusions

    def forward(self, signature: Hashable, arguments: Arguments) -> tuple[Any, Any]:
        """Run the signature's forward program.

        Args:
            signature: Everything that the program depends on.
            arguments: The function's arguments.

        Returns:
            The output, and the residuals for `backward`.
        """
        build = lambda: self._build_forward(signature, arguments)  # noqa: E731
        programs = self._programs.get((self._forward_name, signature), build)
        return programs.forward(*arguments)

    def backward(
        self,
        signature: Hashable,
        arguments: Arguments,
        residuals: Any,
        cotangent: Any,
        *totals: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        """Run the signature's backward program.

        Args:
            signature: The signature that was passed to `forward`.
            arguments: The arguments that were passed to `forward`.
            residuals: The residuals that `forward` returned.
            cotangent: Cotangent of the output.
            *totals: If programs accumulate, the gradients to add to, whose memory is reused.

        Returns:
            The gradient of each differentiated argument.
        """
        build = lambda: self._build_backward(signature, arguments)  # noqa: E731
        program = self._programs.get((self._backward_name, signature), build)
        return program(arguments, residuals, cotangent, *totals)

    def forward_compilation(self, signature: Hashable, arguments: LazyArguments) -> Compilation:
        """Return the compilation that a forward call needs."""
        build = lambda: self._build_forward(signature, arguments)  # noqa: E731
        return Compilation((self._forward_name, signature), build)

    def backward_compilation(self, signature: Hashable, arguments: LazyArguments) -> Compilation:
        """Return the compilation that a backward call needs, which builds the forward one, too."""
        build = lambda: self._build_backward(signature, arguments)  # noqa: E731
        return Compilation((self._backward_name, signature), build)

    def _build_forward(self, signature: Hashable, arguments: LazyArguments) -> VjpPrograms:
        def fn(*arguments: Any) -> Any:
            return self._fn(signature, *arguments)

        num = self._num_differentiated
        return build_vjp(fn, _given(arguments), num(signature) if callable(num) else num)

    def _build_backward(self, signature: Hashable, arguments: LazyArguments) -> jax.stages.Compiled:
        # In this thread: if the pool built it, all its threads could be waiting for such programs.
        programs = self._programs.build_here(*self.forward_compilation(signature, arguments))
        lowered = programs.lower_backward(self._accumulates)
        return compile_lowered(lowered, self._has_large_fusions)


def _given(arguments: LazyArguments) -> Arguments:
    return arguments() if callable(arguments) else arguments


class ProgramTable:
    """Declares the computations of one part of the training step, and compiles their programs.

    Args:
        programs: The cache of programs, shared with tables on other devices; None creates one.
        num_compile_threads: Number of programs that a new cache compiles at the same time.
    """

    def __init__(
        self,
        programs: ProgramCache | ProgramsOnDevice | None = None,
        num_compile_threads: int = 2,
    ) -> None:
        self._programs = programs or ProgramCache(num_compile_threads)

    @property
    def num_compilations(self) -> int:
        """Number of programs compiled so far."""
        return self._programs.num_compilations

    def declare(self, name: str, fn: Callable[..., Any], donates: bool = False) -> Computation:
        """Declare a function without a gradient, see `Computation`."""
        return Computation(self._programs, name, fn, donates)

    def declare_differentiable(
        self,
        name: str,
        fn: Callable[..., Any],
        num_differentiated: int | Callable[[Any], int] = 1,
        accumulates: bool = False,
        has_large_fusions: bool = False,
    ) -> DifferentiableComputation:
        """Declare a function with a gradient, see `DifferentiableComputation`."""
        return DifferentiableComputation(
            self._programs, name, fn, num_differentiated, accumulates, has_large_fusions
        )

    def start_compiling(self, compilations: Iterable[Compilation]) -> None:
        """Start compiling missing programs in parallel threads, without waiting for them.

        Forward programs must come before the backward ones that are made from them; otherwise a
        call could queue a forward program behind a backward one that waits for it.

        On devices other than the default one this does nothing: their programs are copied or
        compiled on first use, and anything started here would be compiled for the default device.

        Args:
            compilations: The programs to compile.
        """
        if isinstance(self._programs, ProgramCache):
            self._submit(compilations)

    def compile_ahead(self, compilations: Iterable[Compilation]) -> None:
        """Compile missing programs in parallel threads, and wait for them."""
        self._programs.wait(self._submit(compilations))

    def warm_up(self, compilations: Iterable[Compilation], **selection: Unpack[Selection]) -> int:
        """Compile the most frequent programs of a sample of calls, in parallel threads.

        Compilation releases Python's global lock, but tracing holds it, so two threads keep two
        cores busy. To use more cores, run several processes, with one share each and a common cache
        on disk.

        Args:
            compilations: One compilation per call of the sample.
            **selection: Which programs to compile, see `Selection`.

        Returns:
            The number of programs selected, including those that were there already.

        Raises:
            ValueError: If `coverage` is not in 0..1.
        """
        coverage, (first, step) = selection.get("coverage", 0.99), selection.get("share", (0, 1))
        progress = selection.get("progress", lambda keys, total: keys)
        if not 0.0 <= coverage <= 1.0:
            raise ValueError(f"coverage is {coverage}, expected 0 <= value <= 1")
        counts: Counter[Hashable] = Counter()
        latest = {}
        for compilation in compilations:
            counts[compilation.key] += 1
            latest[compilation.key] = compilation
        wanted, covered = [], 0
        for key, count in counts.most_common():
            if covered >= coverage * counts.total():
                break
            covered += count
            wanted.append(key)
        wanted = wanted[first::step]
        self._submit(latest[key] for key in wanted)
        for key in progress(wanted, len(wanted)):
            self._programs.wait([key])
        return len(wanted)

    def _submit(self, compilations: Iterable[Compilation]) -> list[Hashable]:
        """Start building the missing programs, and return their keys."""
        keys = []
        for key, build in compilations:
            if key not in self._programs:
                self._programs.submit(key, build)
                keys.append(key)
        return keys
