"""The target network as one Flax module, composed of the blocks of a plan."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from ghn_jax.targets.blocks import BatchNorm
from ghn_jax.targets.operations import NATIVE, Operations
from ghn_jax.targets.plan import Plan


class TargetNetwork(nn.Module):
    """The network that a plan describes: (B, S, S, C) images -> (B, num_classes) logits.

    Batch norm uses batch statistics unless `use_running_average` is set. Its running averages are
    the collection `batch_stats`, which is updated whenever it is mutable. Dropout in the head is
    active if a `dropout` random key is given.

    Attributes:
        plan: The lowered architecture.
        operations: The operations the network computes with, see `ghn_jax.targets.spelling`.
    """

    plan: Plan
    operations: Operations = dataclasses.field(default=NATIVE, repr=False)

    @nn.compact
    def __call__(self, images: jax.Array, use_running_average: bool = False) -> jax.Array:
        expected = self.plan.input_shape
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images have shape {images.shape}, expected"
                f" (batch, {', '.join(map(str, expected))}): NHWC, of the size the architecture was"
                " lowered for"
            )
        values = [images]
        for call in self.plan.calls:
            block = call.block.clone(name=call.name, parent=self, operations=self.operations)
            inputs = [values[index] for index in call.inputs]
            if isinstance(call.block, BatchNorm):
                values.append(block(*inputs, use_running_average=use_running_average))
            else:
                values.append(block(*inputs))
        return values[-1]


def params_tree(plan: Plan, arrays: Sequence[Any]) -> dict[str, Any]:
    """Arrange parameter arrays as the tree that `TargetNetwork(plan).init` returns.

    Args:
        plan: The lowered architecture.
        arrays: Arrays with the order and shapes of `plan.tensors`.

    Returns:
        Nested dictionaries: the collection `params`.

    Raises:
        ValueError: If an array is missing, left over or has the wrong shape; the message names its
            path.
    """
    for index, tensor in enumerate(plan.tensors):
        path = "/".join(tensor.path)
        if index >= len(arrays):
            raise ValueError(f"arrays ends before {path}, expected {len(plan.tensors)} arrays")
        if tuple(arrays[index].shape) != tensor.shape:
            raise ValueError(f"{path} has shape {arrays[index].shape}, expected {tensor.shape}")
    if len(arrays) > len(plan.tensors):
        raise ValueError(
            f"arrays has {len(arrays)} arrays, expected {len(plan.tensors)}: the last one is for"
            f" {'/'.join(plan.tensors[-1].path)}"
        )
    paths = [tensor.path for tensor in plan.tensors]
    return unflatten_dict(dict(zip(paths, arrays, strict=True)))


def flatten_params(plan: Plan, params: Mapping[str, Any]) -> list[Any]:
    """List the arrays of a parameter tree in the order of `plan.tensors`; inverts `params_tree`.

    Args:
        plan: The lowered architecture.
        params: Nested dictionaries with exactly the plan's paths.

    Returns:
        One array per tensor.

    Raises:
        ValueError: If a tensor is missing, extra or has the wrong shape; the message names its
            path.
    """
    leaves = flatten_dict(params)
    expected = {tensor.path for tensor in plan.tensors}
    for kind, paths in (
        ("misses", expected - set(leaves)),
        ("has the extra", set(leaves) - expected),
    ):
        if paths:
            path = "/".join(sorted(paths)[0])
            raise ValueError(
                f"params {kind} tensor {path}, expected exactly the tensors of the plan"
            )
    arrays = [leaves[tensor.path] for tensor in plan.tensors]
    params_tree(plan, arrays)
    return arrays
