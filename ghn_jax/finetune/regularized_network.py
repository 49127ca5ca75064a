"""A network of the architecture space as DARTS trains it, with drop path and an auxiliary head.

In: a plan. Out: a Flax module with the blocks of `TargetNetwork(plan)` under the same names, plus
the head. Source: Liu, Simonyan, Yang, DARTS, ICLR 2019, section 3 and appendix A.
"""

from __future__ import annotations

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.architectures import Architecture
from ghn_jax.targets import blocks
from ghn_jax.targets.operations import NATIVE, Operations
from ghn_jax.targets.plan import SMALL_IMAGE_LIMIT, Plan

_OPERATION = re.compile(r"(cell\d+_)op")
_HEAD_FEATURES = (128, 768)


class RegularizedNetwork(nn.Module):
    """(B, S, S, C) images -> (B, K) logits; in training, a pair with the auxiliary head's logits.

    Attributes:
        plan: The lowered architecture.
        has_auxiliary_head: Whether the output of the second reduction cell has an auxiliary head.
        operations: The operations that it computes with; see `ghn_jax.targets.spelling`.
    """

    plan: Plan
    has_auxiliary_head: bool = True
    operations: Operations = dataclasses.field(default=NATIVE, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        architecture, size = self.plan.architecture, self.plan.image_size
        if not isinstance(architecture, Architecture):
            raise ValueError(
                f"architecture is a {type(architecture).__name__}, expected one of cells: drop path"
                " and the auxiliary head are defined only for these"
            )
        if self.has_auxiliary_head and size > SMALL_IMAGE_LIMIT:
            raise ValueError(
                f"image size is {size}, expected at most {SMALL_IMAGE_LIMIT} with an auxiliary head"
            )

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, drop_path_rate: jax.Array | float = 0.0
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Run the network.

        Args:
            images: (B, S, S, C), normalised.
            train: Whether batch norm uses the batch, paths are dropped and dropout is active.
            drop_path_rate: () float32, probability of dropping an operation's result.

        Returns:
            Logits (B, K), or a pair of them.
        """
        auxiliary = None
        values = [images]
        for index, call in enumerate(self.plan.calls):
            block = call.block.clone(name=call.name, parent=self, operations=self.operations)
            inputs = [values[i] for i in call.inputs]
            if train and isinstance(call.block, blocks.Sum):
                inputs = [
                    self._drop(x, drop_path_rate) if self._is_operation(i, call.name) else x
                    for x, i in zip(inputs, call.inputs, strict=True)
                ]
            if isinstance(call.block, blocks.BatchNorm):
                values.append(block(*inputs, use_running_average=not train))
            else:
                values.append(block(*inputs))
            if self.has_auxiliary_head and index == self._auxiliary_call():
                head = AuxiliaryHead(self.plan.num_classes, self.operations, name="auxiliary_head")
                auxiliary = head(values[-1], train)
        return (values[-1], auxiliary) if train and auxiliary is not None else values[-1]

    def _is_operation(self, value: int, name: str) -> bool:
        """Whether a value comes from an operation of the same cell other than a skip connection."""
        if value == 0:
            return False
        match = _OPERATION.match(self.plan.calls[value - 1].name)
        return match is not None and name.startswith(match[1])

    def _drop(self, x: jax.Array, rate: jax.Array | float) -> jax.Array:
        """Zero an operation's result for some images, and scale the others up to keep the mean."""
        keep = 1 - jnp.asarray(rate, x.dtype)
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = jax.random.bernoulli(self.make_rng("drop_path"), keep, shape)
        return jnp.where(mask, x / keep, jnp.zeros_like(x))

    def _auxiliary_call(self) -> int:
        """Return the last block of the cell at two thirds of the depth."""
        assert isinstance(self.plan.architecture, Architecture)
        prefix = f"cell{2 * self.plan.architecture.num_cells // 3}_"
        return max(i for i, call in enumerate(self.plan.calls) if call.name.startswith(prefix))


class AuxiliaryHead(nn.Module):
    """(B, S, S, C) -> (B, K): pool to 2x2, 1x1 and 2x2 convolutions with norms, linear layer.

    Attributes:
        num_classes: Number of classes K.
        operations: The operations that it computes with.
    """

    num_classes: int
    operations: Operations = dataclasses.field(default=NATIVE, repr=False)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = _pool_to_2x2(nn.relu(x))
        for kernel, features in zip((1, 2), _HEAD_FEATURES, strict=True):
            x = nn.Conv(features, (kernel, kernel), padding="VALID", use_bias=False)(x)
            x = blocks.BatchNorm(operations=self.operations)(x, use_running_average=not train)
            x = nn.relu(x)
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def _pool_to_2x2(x: jax.Array) -> jax.Array:
    """Average two windows along each axis: 5 pixels wide for 8 pixels, otherwise half as wide."""
    for axis in (1, 2):
        size = x.shape[axis]
        window = 5 if size == 8 else -(-size // 2)
        weights = np.zeros((2, size), np.float32)
        weights[0, :window] = weights[1, size - window :] = 1 / window
        x = jnp.moveaxis(jnp.tensordot(weights.astype(x.dtype), x, axes=((1,), (axis,))), 0, axis)
    return x
