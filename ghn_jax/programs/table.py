"""Computations, each declared once, and the programs that calls of the same kind share.

In: a function of a signature and arrays. The signature is all that its programs depend on, the
shapes of the arrays included: hashable, equal for calls that share programs. Out: calls that find
their program, or wait until it is compiled; and programs compiled ahead, in parallel threads. On
another device than the default one the same declarations run on copies of the same programs.
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
"""Of a call: trees of arrays, or of `jax.ShapeDtypeStruct`s where it is compiled ahead."""
LazyArguments = Arguments | Callable[[], Arguments]
"""Or what gives them where programs are built, and only there."""


class Compilation(NamedTuple):
    """A program that calls need: the key it is kept by, and what builds it."""

    key: Hashable
    build: Callable[[], Any]


class Selection(TypedDict, total=False):
    """Which programs `ProgramTable.warm_up` compiles, and who is told.

    Attributes:
        coverage: Share of all calls whose programs are compiled, 0..1; 0.99 by default.
        share: (i, n): of these programs only every n-th, from the i-th on.
        progress: Wraps the keys while they are waited for, given their number.
    """

    coverage: float
    share: tuple[int, int]
    progress: Callable[[Iterable, int], Iterable]


class Computation:
    """A function that runs on one program for each signature.

    Args:
        programs: Where programs are kept.
        name: First part of their keys.
        fn: `fn(signature, *arguments)`; the signature is static.
        donates: Whether a program may take the memory of its first argument for its result.
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
        """Run the program of a signature on the arguments."""
        build = lambda: self._build(signature, arguments)  # noqa: E731
        return self._programs.get((self._name, signature), build)(*arguments)

    def compilation(self, signature: Hashable, arguments: LazyArguments) -> Compilation:
        """What a call will need."""
        build = lambda: self._build(signature, arguments)  # noqa: E731
        return Compilation((self._name, signature), build)

    def _build(self, signature: Hashable, arguments: LazyArguments) -> jax.stages.Compiled:
        def fn(*arguments: Any) -> Any:
            return self._fn(signature, *arguments)

        return compile_lowered(lower_shapes(fn, _given(arguments), self._donates))


class DifferentiableComputation:
    """A function that runs on two programs for each signature: forward, and later backward.

    Args:
        programs: Where programs are kept.
        name: First part of their keys.
        fn: `fn(signature, *arguments)`; the signature is static.
        num_differentiated: How many of the first arguments the gradient is for; or what tells it
            of a signature.
        accumulates: Whether backward programs add to gradients they are given, in their memory.
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
        """Run the forward program of a signature.

        Args:
            signature: Of the call.
            arguments: Of the function.

        Returns:
            The output, and residuals for `backward`.
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
        """Run the backward program of a signature.

        Args:
            signature: Of the call.
            arguments: As `forward` was given them.
            residuals: As `forward` returned them.
            cotangent: Of the output.
            *totals: If programs accumulate, the gradients to add to, whose memory is used.

        Returns:
            The gradient of each differentiated argument.
        """
        build = lambda: self._build_backward(signature, arguments)  # noqa: E731
        program = self._programs.get((self._backward_name, signature), build)
        return program(arguments, residuals, cotangent, *totals)

    def forward_compilation(self, signature: Hashable, arguments: LazyArguments) -> Compilation:
        """What a forward call will need."""
        build = lambda: self._build_forward(signature, arguments)  # noqa: E731
        return Compilation((self._forward_name, signature), build)

    def backward_compilation(self, signature: Hashable, arguments: LazyArguments) -> Compilation:
        """What a backward call will need; building it builds the forward program, too."""
        build = lambda: self._build_backward(signature, arguments)  # noqa: E731
        return Compilation((self._backward_name, signature), build)

    def _build_forward(self, signature: Hashable, arguments: LazyArguments) -> VjpPrograms:
        def fn(*arguments: Any) -> Any:
            return self._fn(signature, *arguments)

        num = self._num_differentiated
        return build_vjp(fn, _given(arguments), num(signature) if callable(num) else num)

    def _build_backward(self, signature: Hashable, arguments: LazyArguments) -> jax.stages.Compiled:
        # In this thread: in another one of the pool's it might wait for itself.
        programs = self._programs.build_here(*self.forward_compilation(signature, arguments))
        lowered = programs.lower_backward(self._accumulates)
        return compile_lowered(lowered, self._has_large_fusions)


def _given(arguments: LazyArguments) -> Arguments:
    return arguments() if callable(arguments) else arguments


class ProgramTable:
    """The computations of a part of the training step, declared once, and their programs.

    Args:
        programs: Compiled programs, shared with tables on other devices; None makes a new cache.
        num_compile_threads: Of a new cache: how many programs compile at the same time.
    """

    def __init__(
        self,
        programs: ProgramCache | ProgramsOnDevice | None = None,
        num_compile_threads: int = 2,
    ) -> None:
        self._programs = programs or ProgramCache(num_compile_threads)

    @property
    def num_compilations(self) -> int:
        """How many programs were compiled so far."""
        return self._programs.num_compilations

    def declare(self, name: str, fn: Callable[..., Any], donates: bool = False) -> Computation:
        """Declare a function that is not differentiated, see `Computation`."""
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
        """Start compiling what is not there yet, in parallel threads; calls wait for theirs.

        Forward programs come before the backward ones that are made from them: in the other order
        a call could queue a forward program behind a backward one that waits for it.

        On another device than the default one this does nothing: programs are taken or made on
        first use, and what is started here would be compiled for the default device meanwhile.
        """
        if isinstance(self._programs, ProgramCache):
            self._submit(compilations)

    def compile_ahead(self, compilations: Iterable[Compilation]) -> None:
        """Compile what is not there yet, in parallel threads, and wait for it."""
        self._programs.wait(self._submit(compilations))

    def warm_up(self, compilations: Iterable[Compilation], **selection: Unpack[Selection]) -> int:
        """Compile the most frequent programs of a sample of calls, in parallel threads.

        Compilation runs outside Python's lock, tracing within it: two threads keep two cores busy;
        more cores want several processes, with a share each and one cache on disk.

        Args:
            compilations: Of every call.
            **selection: See `Selection`.

        Returns:
            How many programs that was.

        Raises:
            ValueError: If the coverage is not in 0..1.
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
        """Start what is not there yet; the keys of it."""
        keys = []
        for key, build in compilations:
            if key not in self._programs:
                self._programs.submit(key, build)
                keys.append(key)
        return keys
