"""Losses and gradients of target networks, computed block by block.

XLA compiles whole programs, but training meets new architectures at every step. A network therefore
runs as a tape of its plan's blocks. Each block has two compiled programs, a forward one (its output
and what its gradient needs) and a backward one, which all blocks with the same configuration and
shapes share. After a few hundred architectures there is hardly anything left to compile.

The engine takes plans, their parameters in the order of `plan.tensors`, images and labels. For each
architecture it returns the loss and the gradients of those parameters.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ghn_jax.arrays import Array
from ghn_jax.engine.signature import BlockSignature, sign_call
from ghn_jax.programs.cache import ProgramCache, keep_freed_memory
from ghn_jax.programs.relocation import ProgramsOnDevice
from ghn_jax.programs.table import Compilation, ProgramTable, Selection
from ghn_jax.targets import blocks
from ghn_jax.targets.plan import Plan
from ghn_jax.tasks import CLASSIFICATION, Batch

LossFn = Callable[[jax.Array, Batch], jax.Array]

COMPUTE_DTYPES = ("float32", "bfloat16")


class LossAndGrads(NamedTuple):
    """The result for one architecture.

    Attributes:
        loss: () float32.
        grads: Gradients of the parameters, in the order of `plan.tensors`.
    """

    loss: Array
    grads: list[Array]


class BlockwiseEngine:
    """Runs plans block by block on shared compiled programs.

    Args:
        loss_fn: The task's loss, which maps (B, K) float32 outputs and a batch to (), see `Task`.
        num_threads: Number of architectures that run at the same time.
        num_compile_threads: Number of programs that compile at the same time.
        compute_dtype: The dtype of activations and of the kernels applied to them, "float32" or
            "bfloat16"; None means the dtype of the images. Parameters, their gradients, batch
            statistics and losses always have the dtype of the parameters.
        programs: The cache of programs, shared with engines on other devices; None creates one.

    Raises:
        ValueError: If `compute_dtype` is not one of these.
    """

    def __init__(
        self,
        loss_fn: LossFn = CLASSIFICATION.loss_fn,
        num_threads: int = 1,
        num_compile_threads: int = 2,
        compute_dtype: str | None = None,
        programs: ProgramCache | ProgramsOnDevice | None = None,
    ) -> None:
        if compute_dtype not in (None, *COMPUTE_DTYPES):
            raise ValueError(
                f"compute_dtype is {compute_dtype!r}, expected one of {', '.join(COMPUTE_DTYPES)}"
            )
        self._compute_dtype = None if compute_dtype is None else jnp.dtype(compute_dtype)
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        self._loss_fn = loss_fn
        self._table = ProgramTable(programs, num_compile_threads)
        self._blocks = self._table.declare_differentiable(
            "block",
            BlockSignature.apply,
            num_differentiated=lambda signature: signature.num_differentiated,
        )
        self._sum = self._table.declare("sum", lambda _, arrays: functools.reduce(jnp.add, arrays))
        self._loss_and_grad = self._table.declare("loss", self._differentiate_loss)
        self._threads = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._observe: Callable[[str, str, float], None] | None = None

    @contextlib.contextmanager
    def observed(self, observe: Callable[[str, str, float], None]) -> Iterator[None]:
        """Wait for every program and report how long it took, within a `with` block.

        Args:
            observe: Called as `observe(program, signature, seconds)`, where `program` is "forward"
                or "backward" and `signature` describes the block.
        """
        self._observe = observe
        try:
            yield
        finally:
            self._observe = None

    @property
    def num_compilations(self) -> int:
        """Number of programs compiled so far."""
        return self._table.num_compilations

    def loss_and_grads(
        self,
        plans: Sequence[Plan],
        target_params: Sequence[Sequence[Array]],
        batch: Batch,
        dropout_keys: Sequence[jax.Array] | None = None,
    ) -> list[LossAndGrads]:
        """Compute each architecture's loss on a batch, and the gradients of its parameters.

        Args:
            plans: The lowered architectures.
            target_params: For each plan, arrays with the order and shapes of `plan.tensors`.
            batch: Normalised images (B, S, S, C) and their labels.
            dropout_keys: One random key per architecture; None runs the heads without dropout.

        Returns:
            One `LossAndGrads` per architecture, in the same order, possibly still being computed.
        """
        images = self._cast(batch.images)
        batch = Batch(images, jnp.asarray(batch.labels))
        self.compile_ahead(plans, images.shape[0], images.dtype, dropout_keys is not None)
        keys = dropout_keys if dropout_keys is not None else [None] * len(plans)

        def of_one(plan: Plan, params: Sequence[Array], key: jax.Array | None) -> LossAndGrads:
            return self._loss_and_grads(plan, params, batch, key)

        mapper = self._threads.map if self._threads is not None else map
        return list(mapper(of_one, plans, target_params, keys))

    def logits(self, plan: Plan, target_params: Sequence[Array], images: Array) -> jax.Array:
        """Run one network on a batch, with the batch's statistics and without dropout.

        Args:
            plan: The lowered architecture.
            target_params: Arrays in the order of `plan.tensors`.
            images: (B, S, S, C) normalised images.

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
        dtype: DTypeLike = jnp.float32,
        drops: bool = False,
        with_gradients: bool = True,
    ) -> None:
        """Compile all missing programs that the plans need, in parallel threads.

        Args:
            plans: The lowered architectures.
            batch_size: Number of images in a batch.
            dtype: Dtype of the images.
            drops: Whether the heads use dropout.
            with_gradients: Whether to compile the backward programs, too.
        """
        self._table.compile_ahead(
            self._compilations(plans, batch_size, dtype, drops, with_gradients)
        )

    def warm_up(
        self,
        plans: Sequence[Plan],
        batch_size: int,
        dtype: DTypeLike = jnp.float32,
        drops: bool = False,
        **selection: Unpack[Selection],
    ) -> int:
        """Compile the most frequent programs of a sample of architectures, in parallel threads.

        Args:
            plans: The sampled architectures, lowered.
            batch_size: Number of images in a batch.
            dtype: Dtype of the images.
            drops: Whether the heads use dropout.
            **selection: Which programs to compile, see `Selection`.

        Returns:
            The number of programs selected.
        """
        compilations = self._compilations(plans, batch_size, self._compute_dtype or dtype, drops)
        return self._table.warm_up(compilations, **selection)

    def _compilations(
        self,
        plans: Sequence[Plan],
        batch_size: int,
        dtype: Any,
        drops: bool,
        with_gradients: bool = True,
    ) -> Iterator[Compilation]:
        """Yield the last program that each call needs; the gradient of a sum needs none."""
        for plan in plans:
            shapes = _value_shapes(plan, batch_size)
            for call in plan.calls:
                signature = sign_call(call, [shapes[i] for i in call.inputs], dtype, drops)
                if with_gradients and not isinstance(call.block, blocks.Sum):
                    yield self._blocks.backward_compilation(signature, signature.arguments)
                else:
                    yield self._blocks.forward_compilation(signature, signature.arguments)

    def _cast(self, images: Array) -> jax.Array:
        images = jnp.asarray(images)
        return images if self._compute_dtype is None else images.astype(self._compute_dtype)

    def _loss_and_grads(
        self,
        plan: Plan,
        params: Sequence[Array],
        batch: Batch,
        key: jax.Array | None,
    ) -> LossAndGrads:
        values, tape = self._forward(plan, params, batch.images, key)
        arguments = (values[-1], batch)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
        loss, cotangent = self._loss_and_grad(shapes, arguments)
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
                signature, *saved = tape[index - 1]
                grads[index - 1], *rest = self._call_block("backward", signature, *saved, dy)
                d_inputs = rest[0] if rest else ()
            tape[index - 1] = None
            values[index] = None
            for source, d_input in zip(call.inputs, d_inputs, strict=False):
                if source:
                    cotangents[source].append(d_input)
        return LossAndGrads(loss, [grad for call_grads in grads for grad in call_grads])

    def _forward(
        self, plan: Plan, params: Sequence[Array], images: jax.Array, key: jax.Array | None
    ) -> tuple[list[Any], list[Any]]:
        """Return [image, output of every call] and the tape of signatures, arguments, residuals."""
        values, tape = [images], []
        remaining = iter(params)
        for call in plan.calls:
            inputs = tuple(values[i] for i in call.inputs)
            call_params = tuple(next(remaining) for _ in call.tensors)
            shapes = [x.shape for x in inputs]
            signature = sign_call(call, shapes, images.dtype, key is not None)
            arguments = (call_params, inputs, key) if signature.drops else (call_params, inputs)
            output, residuals = self._call_block("forward", signature, arguments)
            values.append(output)
            tape.append((signature, arguments, residuals))
        return values, tape

    def _call_block(self, way: str, signature: BlockSignature, *arguments: Any) -> Any:
        """Run a block's program, "forward" or "backward"."""
        program = self._blocks.forward if way == "forward" else self._blocks.backward
        if self._observe is None:
            return program(signature, *arguments)
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(signature, *arguments))
        self._observe(way, signature.describe(), time.perf_counter() - start)
        return outputs

    def _add(self, cotangents: list[Array]) -> Array:
        if len(cotangents) == 1:
            return cotangents[0]
        first = cotangents[0]
        return self._sum((len(cotangents), first.shape, first.dtype), (cotangents,))

    def _differentiate_loss(
        self, _: Any, outputs: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        def loss_fn(outputs: jax.Array) -> jax.Array:
            return self._loss_fn(_at_least_float32(outputs), batch)

        return jax.value_and_grad(loss_fn)(outputs)


def _at_least_float32(array: jax.Array) -> jax.Array:
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def _value_shapes(plan: Plan, batch_size: int) -> list[tuple[int, ...]]:
    shapes = [plan.input_shape, *(call.output_shape for call in plan.calls)]
    return [(batch_size, *shape) for shape in shapes]
