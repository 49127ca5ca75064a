"""Signatures of block calls: the configuration of the block and the shapes of its inputs.

A signature is made from a call of a plan, and says what the block's programs compute and on which
shapes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from ghn_jax.graphs.schema import ParameterTensor
from ghn_jax.targets import blocks
from ghn_jax.targets.plan import BlockCall
from ghn_jax.targets.spelling import operations_with_adjoints, with_operations
from ghn_jax.targets.symbolic import Activation, Recorder


class BlockSignature(NamedTuple):
    """A kind of block call; calls with equal signatures share programs.

    Attributes:
        block: The block that is called.
        input_shapes: Shape of each input, (B, ...).
        dtype: Dtype of the inputs.
        needs_input_grads: Whether the inputs need gradients, too; images do not.
        drops: Whether the block uses dropout.
    """

    block: blocks.Block
    input_shapes: tuple[tuple[int, ...], ...]
    dtype: Any
    needs_input_grads: bool
    drops: bool

    @property
    def num_differentiated(self) -> int:
        """Number of leading arguments with gradients: parameters, and inputs if they need them."""
        return 2 if self.needs_input_grads else 1

    def arguments(self) -> tuple:
        """Return the shapes of the parameters, the inputs and, with dropout, a random key."""
        param_dtype = jnp.float32 if jnp.finfo(self.dtype).bits < 32 else self.dtype
        params = tuple(jax.ShapeDtypeStruct(t.shape, param_dtype) for t in self._tensors())
        inputs = tuple(jax.ShapeDtypeStruct(shape, self.dtype) for shape in self.input_shapes)
        key = (jax.eval_shape(lambda: jax.random.key(0)),) if self.drops else ()
        return (params, inputs, *key)

    def apply(self, params: Sequence, inputs: Sequence, key: jax.Array | None = None) -> Any:
        """Run the block on inputs (B, ...) with parameters in the order of its tensors."""
        if not isinstance(self.block, blocks.BatchNorm):  # batch norm keeps its precision
            params = [param.astype(self.dtype) for param in params]
        paths = [tensor.path[1:] for tensor in self._tensors()]
        variables = {"params": unflatten_dict(dict(zip(paths, params, strict=True)))}
        block = with_operations(self.block, operations_with_adjoints())
        return block.apply(variables, *inputs, rngs=None if key is None else {"dropout": key})

    def _tensors(self) -> list[ParameterTensor]:
        recorder = Recorder()
        recorder.enter("block")
        inputs = [Activation(shape[1:], index) for index, shape in enumerate(self.input_shapes)]
        self.block.record(recorder, *inputs)
        return recorder.tensors

    def describe(self) -> str:
        """Describe the signature in one line, for tables of timings."""
        fields = dataclasses.asdict(self.block)
        fields = {k: v for k, v in fields.items() if k not in ("name", "parent", "operations")}
        settings = ",".join(f"{k}={v}" for k, v in fields.items())
        shapes = " ".join("x".join(map(str, shape)) for shape in self.input_shapes)
        return f"{type(self.block).__name__} ({settings}) {shapes}"


def sign_call(
    call: BlockCall, input_shapes: Sequence[tuple[int, ...]], dtype: Any, drops: bool
) -> BlockSignature:
    """Return the signature of a block call.

    Args:
        call: The call, from a plan.
        input_shapes: Shape of each input, (B, ...).
        dtype: Dtype of the inputs.
        drops: Whether dropout is on; only some heads have it.

    Returns:
        The signature.
    """
    needs_input_grads = any(call.inputs)  # value 0 is the image
    drops = drops and isinstance(call.block, blocks.Linear) and call.block.activate
    shapes = tuple(map(tuple, input_shapes))
    return BlockSignature(call.block, shapes, jnp.dtype(dtype), needs_input_grads, drops)
