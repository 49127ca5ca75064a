"""Losses and gradients of target networks, block by block.

XLA compiles programs, not architectures, and training meets a new architecture at every step. So a
network runs as a tape of its plan's blocks. A block is two compiled programs, forward (its output
and what its gradient needs) and backward, shared by all blocks of the same configuration and
shapes. After a few hundred architectures hardly anything is left to compile.

In: plans, their parameters in the order of `plan.tensors`, images and labels. Out: a loss and the
gradients of those parameters per architecture.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from ghn_jax.programs.cache import (
    ProgramCache,
    Selection,
    VjpPrograms,
    build_vjp,
    compile_frequent,
    compile_lowered,
    keep_freed_memory,
    lower_shapes,
    start_compiling,
)
from ghn_jax.programs.relocation import ProgramsOnDevice
from ghn_jax.targets import blocks
from ghn_jax.targets.plan import BlockCall, Plan
from ghn_jax.targets.spelling import operations_with_adjoints, with_operations

Array = Any  # a numpy or JAX array


COMPUTE_DTYPES = ("float32", "bfloat16")


class LossAndGrads(NamedTuple):
    """Of one architecture: loss, () float32, and gradients in the order of `plan.tensors`."""

    loss: Array
    grads: list[Array]


class _Signature(NamedTuple):
    block: blocks.Block
    input_shapes: tuple[tuple[int, ...], ...]
    dtype: Any
    needs_input_grads: bool
    drops: bool

    def describe(self) -> str:
        fields = dataclasses.asdict(self.block)
        fields = {k: v for k, v in fields.items() if k not in ("name", "parent", "operations")}
        settings = ",".join(f"{k}={v}" for k, v in fields.items())
        shapes = " ".join("x".join(map(str, shape)) for shape in self.input_shapes)
        return f"{type(self.block).__name__} ({settings}) {shapes}"


class BlockwiseEngine:
    """Runs plans block by block on shared compiled programs.

    Args:
        label_smoothing: Share of the target distribution spread over all classes.
        num_threads: How many architectures run at the same time.
        num_compile_threads: How many programs compile at the same time.
        compute_dtype: "float32" or "bfloat16": what activations and the kernels that meet them
            are computed in; None is the type of the images. Parameters, their gradients, batch
            statistics and losses have the type of the parameters whichever it is.
        programs: Compiled programs, shared with engines on other devices; None makes a new cache.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        num_threads: int = 1,
        num_compile_threads: int = 2,
        compute_dtype: str | None = None,
        programs: ProgramCache | ProgramsOnDevice | None = None,
    ) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 <= value < 1")
        if compute_dtype not in (None, *COMPUTE_DTYPES):
            raise ValueError(
                f"compute_dtype is {compute_dtype!r}, expected one of {', '.join(COMPUTE_DTYPES)}"
            )
        self._compute_dtype = None if compute_dtype is None else jnp.dtype(compute_dtype)
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        self._label_smoothing = label_smoothing
        self._programs = programs or ProgramCache(num_compile_threads)
        self._threads = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._observe: Callable[[str, str, float], None] | None = None

    @contextlib.contextmanager
    def observed(self, observe: Callable[[str, str, float], None]) -> Iterator[None]:
        """Wait for every program, and report its time: `observe(program, signature, seconds)`.

        Args:
            observe: Receives "forward" or "backward", a description of the signature, and seconds.
        """
        self._observe = observe
        try:
            yield
        finally:
            self._observe = None

    @property
    def num_compilations(self) -> int:
        """How many programs were compiled so far."""
        return self._programs.num_compilations

    def loss_and_grads(
        self,
        plans: Sequence[Plan],
        target_params: Sequence[Sequence[Array]],
        images: Array,
        labels: Array,
        dropout_keys: Sequence[jax.Array] | None = None,
    ) -> list[LossAndGrads]:
        """Compute every architecture's loss on the same images and the gradients of its parameters.

        Args:
            plans: One per architecture.
            target_params: For each plan, arrays in the order and shapes of `plan.tensors`.
            images: (B, S, S, 3), normalised.
            labels: (B,) int32.
            dropout_keys: A random key per architecture; None runs the heads without dropout.

        Returns:
            One `LossAndGrads` per architecture, in order; values may still be under way.
        """
        images, labels = self._cast(images), jnp.asarray(labels)
        self.compile_ahead(plans, images.shape[0], images.dtype, dropout_keys is not None)
        keys = dropout_keys if dropout_keys is not None else [None] * len(plans)

        def run(plan, params, key):
            return self._loss_and_grads(plan, params, images, labels, key)

        mapper = self._threads.map if self._threads is not None else map
        return list(mapper(run, plans, target_params, keys))

    def logits(self, plan: Plan, target_params: Sequence[Array], images: Array) -> jax.Array:
        """Run one network on a batch, batch norm on its statistics, without dropout.

        Args:
            plan: The lowered architecture.
            target_params: Arrays in the order of `plan.tensors`.
            images: (B, S, S, 3), normalised.

        Returns:
            (B, num_classes) logits.
        """
        images = self._cast(images)
        self.compile_ahead([plan], images.shape[0], images.dtype, with_gradients=False)
        return self._forward(plan, target_params, images, None)[0][-1]

    def compile_ahead(
        self,
        plans: Sequence[Plan],
        batch_size: int,
        dtype=jnp.float32,
        drops: bool = False,
        with_gradients: bool = True,
    ) -> None:
        """Compile whatever the plans need that is not there yet, in parallel.

        Args:
            plans: Lowered architectures.
            batch_size: Number of images in a batch.
            dtype: Of images and parameters.
            drops: Whether heads drop features.
            with_gradients: Whether the backward programs are needed, too.
        """
        calls = self._requests(plans, batch_size, dtype, drops, with_gradients)
        self._programs.wait(start_compiling(self._programs, calls))

    def warm_up(
        self,
        plans: Sequence[Plan],
        batch_size: int,
        dtype=jnp.float32,
        drops: bool = False,
        **selection: Unpack[Selection],
    ) -> int:
        """Compile the most frequent programs of a sample of architectures, in parallel threads.

        Args:
            plans: The sample.
            batch_size: Number of images in a batch.
            dtype: Of images and parameters.
            drops: Whether heads drop features.
            **selection: `coverage`, `share` and `progress` of `compile_frequent`.

        Returns:
            How many programs that was.
        """
        calls = self._requests(plans, batch_size, self._compute_dtype or dtype, drops)
        return compile_frequent(self._programs, calls, **selection)

    def _requests(self, plans, batch_size, dtype, drops, with_gradients=True):
        """For every call of the plans, the key of its last program and what builds that."""
        for plan in plans:
            shapes = _value_shapes(plan, batch_size)
            for call in plan.calls:
                signature = self._signature(call, [shapes[i] for i in call.inputs], dtype, drops)
                backward = with_gradients and not isinstance(call.block, blocks.Sum)
                build = self._build_backward if backward else _build_forward
                key = ("backward" if backward else "forward", signature)
                yield key, functools.partial(build, signature, call)

    def _cast(self, images: Array) -> jax.Array:
        images = jnp.asarray(images)
        return images if self._compute_dtype is None else images.astype(self._compute_dtype)

    def _loss_and_grads(self, plan, params, images, labels, key) -> LossAndGrads:
        values, tape = self._forward(plan, params, images, key)
        loss, cotangent = self._loss(values[-1], labels)
        cotangents: list[list[Array]] = [[] for _ in values]
        cotangents[-1].append(cotangent)
        grads: list[Array] = [None] * len(plan.calls)
        for index in range(len(plan.calls), 0, -1):
            call = plan.calls[index - 1]
            dy = self._add(cotangents[index])
            cotangents[index] = []
            if isinstance(call.block, blocks.Sum):
                grads[index - 1] = ()
                d_inputs: tuple = (dy, dy)
            else:
                signature, arguments, residuals = tape[index - 1]
                backward = self._backward(signature, call)
                arguments = (arguments, residuals, dy)
                grads[index - 1], *rest = self._run("backward", signature, backward, arguments)
                d_inputs = rest[0] if rest else ()
            tape[index - 1] = None
            values[index] = None
            for source, d_input in zip(call.inputs, d_inputs, strict=False):
                if source:
                    cotangents[source].append(d_input)
        return LossAndGrads(loss, [grad for call_grads in grads for grad in call_grads])

    def _forward(self, plan, params, images, key):
        values, tape = [images], []
        remaining = iter(params)
        for call in plan.calls:
            inputs = tuple(values[i] for i in call.inputs)
            call_params = tuple(next(remaining) for _ in call.tensors)
            signature = self._signature(
                call, [x.shape for x in inputs], images.dtype, key is not None
            )
            arguments = (call_params, inputs, key) if signature.drops else (call_params, inputs)
            forward = self._block_programs(signature, call).forward
            output, residuals = self._run("forward", signature, forward, arguments)
            values.append(output)
            tape.append((signature, arguments, residuals))
        return values, tape

    def _run(self, name, signature, program, arguments):
        if self._observe is None:
            return program(*arguments)
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(*arguments))
        self._observe(name, signature.describe(), time.perf_counter() - start)
        return outputs

    def _signature(self, call: BlockCall, input_shapes, dtype, drops) -> _Signature:
        needs_input_grads = any(call.inputs)  # value 0 is the image
        drops = drops and isinstance(call.block, blocks.Linear) and call.block.activate
        shapes = tuple(map(tuple, input_shapes))
        return _Signature(call.block, shapes, jnp.dtype(dtype), needs_input_grads, drops)

    def _block_programs(self, signature: _Signature, call: BlockCall) -> VjpPrograms:
        build = lambda: _build_forward(signature, call)  # noqa: E731
        return self._programs.get(("forward", signature), build)

    def _backward(self, signature: _Signature, call: BlockCall) -> jax.stages.Compiled:
        build = lambda: self._build_backward(signature, call)  # noqa: E731
        return self._programs.get(("backward", signature), build)

    def _build_backward(self, signature: _Signature, call: BlockCall) -> jax.stages.Compiled:
        build = lambda: _build_forward(signature, call)  # noqa: E731
        programs = self._programs.build_here(("forward", signature), build)
        return compile_lowered(programs.lower_backward())

    def _add(self, cotangents: list[Array]) -> Array:
        if len(cotangents) == 1:
            return cotangents[0]
        first = cotangents[0]
        key = ("add", len(cotangents), first.shape, first.dtype)
        build = lambda: compile_lowered(lower_shapes(_add_all, cotangents))  # noqa: E731
        return self._programs.get(key, build)(cotangents)

    def _loss(self, logits, labels):
        def build():
            smoothing = self._label_smoothing
            grad_fn = jax.value_and_grad(
                lambda logits, labels: cross_entropy(_at_least_float32(logits), labels, smoothing)
            )
            return compile_lowered(lower_shapes(grad_fn, logits, labels))

        return self._programs.get(("loss", logits.shape, logits.dtype), build)(logits, labels)


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Mean cross-entropy.

    Args:
        logits: (B, K).
        labels: (B,) int32.
        label_smoothing: Share of the target distribution spread over all K classes.

    Returns:
        () mean over the batch, nats.
    """
    num_classes = logits.shape[-1]
    targets = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    targets = optax.smooth_labels(targets, label_smoothing) if label_smoothing else targets
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def _at_least_float32(array):
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def _add_all(arrays):
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def _value_shapes(plan: Plan, batch_size: int) -> list[tuple[int, ...]]:
    image_shape = (plan.image_size, plan.image_size, 3)
    shapes = [image_shape, *(call.output_shape for call in plan.calls)]
    return [(batch_size, *shape) for shape in shapes]


def _build_forward(signature: _Signature, call: BlockCall) -> VjpPrograms:
    block = with_operations(signature.block, operations_with_adjoints())
    dtype = signature.dtype
    paths = [tensor.path[1:] for tensor in call.tensors]

    def apply(params, inputs, *key):
        if not isinstance(block, blocks.BatchNorm):  # whose statistics are not rounded
            params = [param.astype(dtype) for param in params]
        variables = {"params": unflatten_dict(dict(zip(paths, params, strict=True)))}
        return block.apply(variables, *inputs, rngs={"dropout": key[0]} if key else None)

    param_dtype = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    params = tuple(jax.ShapeDtypeStruct(tensor.shape, param_dtype) for tensor in call.tensors)
    inputs = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in signature.input_shapes)
    key = (jax.eval_shape(lambda: jax.random.key(0)),) if signature.drops else ()
    num_differentiated = 2 if signature.needs_input_grads else 1
    return build_vjp(apply, (params, inputs, *key), num_differentiated)
