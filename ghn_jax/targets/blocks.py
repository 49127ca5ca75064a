"""The blocks that target networks are made of: Flax modules that also trace themselves.

A block holds static configuration only, so equal blocks share one compiled program. Every
`__call__` takes (B, H, W, C) images, or (B, C) vectors in the head, and returns the same kind.
Blocks are this small because the number of distinct signatures decides how long a short run spends
compiling: with convolution and norm in separate blocks, all operations that use either one share
it (docs/method.md, 'Operations', lists the operations).
"""

import dataclasses
import math
from typing import Generic, TypeVarTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.layer_norm import LayerNorm
from ghn_jax.targets import operations
from ghn_jax.targets.operations import NATIVE, Operations
from ghn_jax.targets.symbolic import Activation, Recorder

_kernel_init = nn.initializers.he_normal(dtype=jnp.float32)
_Inputs = TypeVarTuple("_Inputs")


class Block(nn.Module, Generic[*_Inputs], kw_only=True):
    """Base class of all blocks; its type arguments are the activations that `record` takes.

    Attributes:
        operations: The operations the block computes with, chosen by whoever runs it.
    """

    operations: Operations = dataclasses.field(default=NATIVE, repr=False)

    @nn.nowrap
    def record(self, recorder: Recorder, *inputs: *_Inputs) -> Activation:
        """Run the block on symbolic values, adding its nodes and tensors to `recorder`."""
        raise NotImplementedError


class Conv(Block[Activation]):
    """An optional relu, then a convolution without bias, padded by half its odd kernel size."""

    features: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    activate: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape)
        return self.operations.convolve(x, kernel, self.stride, self.activate)

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        return recorder.convolution(x, self.kernel, self.features, self.stride)


class DepthwiseConv(Block[Activation]):
    """A relu, then a depthwise convolution without bias, padded by half its dilated odd kernel."""

    kernel: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", _kernel_init, (self.kernel, self.kernel, 1, x.shape[-1]))
        return self.operations.convolve_depthwise(x, kernel, self.stride, self.dilation, True)

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        return recorder.depthwise(x, self.kernel, self.stride, self.dilation)


class BatchNorm(Block[Activation]):
    """Batch norm with batch statistics or, on request, with running averages.

    Flax's own norm requires running averages even if only batch statistics are used, as in every
    evaluation of predicted parameters, and its default variance loses digits to cancellation.
    Running averages live in the collection `batch_stats` (mean, var) and are updated whenever that
    collection is mutable.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool = False) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        tracks = use_running_average or self.is_mutable_collection("batch_stats")
        if tracks:
            running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
            running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if use_running_average:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            shift = bias - running_mean.value * factor
            y = x * operations.as_row(factor, x.ndim) + operations.as_row(shift, x.ndim)
            return y.astype(x.dtype)
        if tracks and not self.is_initializing():
            mean, var = operations.moments(x)
            count = x.size // channels
            unbiased = var * (count / max(count - 1, 1))
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return self.operations.batch_norm(x, scale, bias, self.epsilon)

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        return recorder.norm(x, "bn")


class FactorizedReduce(Block[Activation]):
    """A relu, two 1x1 stride-2 convolutions and their concatenation.

    The second convolution reads the image shifted by one pixel down and right. An odd side has one
    pixel fewer on that shifted grid, so the image is padded with zeros there (the published
    networks only meet even sides).
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        odd_h, odd_w = x.shape[1] % 2, x.shape[2] % 2
        shifted = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, odd_h), (0, odd_w), (0, 0)))
        shape = (1, 1, x.shape[-1], self.features // 2)
        first = self.param("kernel_1", _kernel_init, shape)
        second = self.param("kernel_2", _kernel_init, shape)
        halves = [
            self.operations.convolve(x, first, (2, 2), True),
            self.operations.convolve(shifted, second, (2, 2), True),
        ]
        return jnp.concatenate(halves, axis=-1)

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        half = self.features // 2
        first = recorder.convolution(x, (1, 1), half, (2, 2), name="kernel_1")
        second = recorder.convolution(x, (1, 1), half, (2, 2), name="kernel_2")
        node = recorder.merge("concat", (first.node, second.node))
        return Activation((*first.shape[:2], self.features), node)


class Relu(Block[Activation]):
    """A relu, which has no node in the graph."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        return x


class Pool(Block[Activation]):
    """3x3 max or average pooling, padded by one pixel; the average ignores the padding."""

    kind: str
    stride: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        pool_fn = self.operations.max_pool if self.kind == "max" else operations.average_pool
        return pool_fn(x, self.stride)

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        node = recorder.node(f"{self.kind}_pool", (x.node,), (1, 1, 3, 3))
        height, width, channels = x.shape
        size = operations.output_size
        return Activation((size(height, self.stride), size(width, self.stride), channels), node)


class Subsample(Block[Activation]):
    """Keep every second pixel; has no node in the graph."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x[:, ::2, ::2]

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        height, width, channels = x.shape
        return Activation(((height + 1) // 2, (width + 1) // 2, channels), x.node)


class Sum(Block[Activation, Activation]):
    """Add two images."""

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + y

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation, y: Activation) -> Activation:
        if x.shape != y.shape:
            raise ValueError(f"cannot add images of shapes {x.shape} and {y.shape}")
        return Activation(x.shape, recorder.merge("sum", (x.node, y.node)))


class Concat(Block[*tuple[Activation, ...]]):
    """Concatenate along channels; members that a `none` left without output become zeros.

    Attributes:
        present: Whether each member is one of the inputs.
    """

    present: tuple[bool, ...]

    def __call__(self, *inputs: jax.Array) -> jax.Array:
        members = iter(inputs)
        zeros = jnp.zeros_like(inputs[0])
        return jnp.concatenate([next(members) if p else zeros for p in self.present], axis=-1)

    @nn.nowrap
    def record(self, recorder: Recorder, *inputs: Activation) -> Activation:
        height, width, channels = inputs[0].shape
        if any(x.shape != inputs[0].shape for x in inputs):
            raise ValueError(f"cannot concatenate images of shapes {[x.shape for x in inputs]}")
        node = recorder.merge("concat", tuple(x.node for x in inputs))
        return Activation((height, width, channels * len(self.present)), node)


class Attention(Block[Activation]):
    """x + proj(attention(LN(x))), then x + MLP(LN(x)), with pixels as tokens; then subsampling."""

    stride: int = 1
    num_heads: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        inner = self.num_heads * (channels // self.num_heads)
        x = x.reshape(-1, channels)  # all tokens of all images in one axis: plain matrix products
        y = LayerNorm(name="norm_1")(x)
        qkv = nn.Dense(3 * inner, use_bias=False, kernel_init=_kernel_init, name="qkv")(y)
        y = self.operations.attend(qkv.reshape(batch, height * width, -1), self.num_heads)
        y = y.reshape(-1, inner)
        x = x + nn.Dense(channels, kernel_init=_kernel_init, name="proj")(y)
        y = LayerNorm(name="norm_2")(x)
        y = nn.Dense(channels, kernel_init=_kernel_init, name="mlp_1")(y)
        y = nn.Dense(channels, kernel_init=_kernel_init, name="mlp_2")(
            jax.nn.gelu(y, approximate=False)
        )
        x = (x + y).reshape(batch, height, width, channels)
        return x[:, :: self.stride, :: self.stride]

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        height, width, channels = x.shape
        inner = self.num_heads * (channels // self.num_heads)
        y = recorder.norm(x, "ln", name="norm_1")
        y = recorder.dense(y, "qkv", 3 * inner, bias=False)
        y = Activation((height, width, inner), recorder.node("msa", (y.node,)))
        y = recorder.dense(y, "proj", channels, bias=True)
        x = Activation(x.shape, recorder.merge("sum", (x.node, y.node)))
        y = recorder.norm(x, "ln", name="norm_2")
        y = recorder.dense(y, "mlp_1", channels, bias=True)
        y = recorder.dense(y, "mlp_2", channels, bias=True)
        size = operations.output_size
        shape = (size(height, self.stride), size(width, self.stride), channels)
        return Activation(shape, recorder.merge("sum", (x.node, y.node)))


class SqueezeExcite(Block[Activation]):
    """Scale channels by hard_swish(fc(relu(fc(mean over pixels)))), then subsample."""

    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        gate = jnp.mean(x, axis=(1, 2))
        gate = nn.Dense(channels // 2, kernel_init=_kernel_init, name="squeeze")(gate)
        gate = nn.Dense(channels, kernel_init=_kernel_init, name="excite")(jax.nn.relu(gate))
        x = x * jax.nn.hard_swish(gate)[:, None, None]
        return x[:, :: self.stride, :: self.stride]

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        height, width, channels = x.shape
        gate = Activation((channels,), x.node)
        gate = recorder.dense(gate, "squeeze", channels // 2, bias=True)
        gate = recorder.dense(gate, "excite", channels, bias=True)
        node = recorder.node("cse", (x.node, gate.node))
        size = operations.output_size
        return Activation((size(height, self.stride), size(width, self.stride), channels), node)


class PatchStem(Block[Activation]):
    """Split images into patches by a convolution, and add a positional encoding.

    The convolution's stride equals its kernel size.
    """

    features: int
    patch: int

    @property
    def padding(self) -> int:
        return 1 if self.patch < 4 else 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.patch, self.patch, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape)
        x = operations.convolve_patches(x, kernel, self.padding)
        init = nn.initializers.normal(1.0, jnp.float32)
        return x + self.param("position", init, (1, *x.shape[1:]))

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        height, width, channels = x.shape
        patch = self.patch
        node = recorder.node("conv", (x.node,), (self.features, channels, patch, patch))
        recorder.tensor(("kernel",), (patch, patch, channels, self.features), node, "kernel")
        rows, columns = ((size + 2 * self.padding) // patch for size in (height, width))
        position = recorder.node("pos_enc", (), (1, self.features, rows, columns))
        recorder.tensor(("position",), (1, rows, columns, self.features), position, "position")
        node = recorder.merge("sum", (node, position))
        return Activation((rows, columns, self.features), node)


class GlobalPool(Block[Activation]):
    """Mean over pixels: (B, H, W, C) -> (B, C)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x, axis=(1, 2))

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        return Activation((x.shape[-1],), recorder.node("glob_avg", (x.node,)))


class Flatten(Block[Activation]):
    """(B, H, W, C) -> (B, C H W), channels first, as in the published networks."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        return Activation((math.prod(x.shape),), x.node)


class Linear(Block[Activation]):
    """A linear layer of the head, preceded by relu and dropout unless it is the first.

    Dropout is active only if a `dropout` random key is given and the rate is positive.
    """

    features: int
    activate: bool = False
    classifier: bool = True
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.activate:
            x = jax.nn.relu(x)
            drops = self.has_rng("dropout") and not self.is_initializing()
            x = nn.Dropout(self.dropout_rate, deterministic=not drops)(x)
        return nn.Dense(self.features, kernel_init=_kernel_init, name="dense")(x)

    @nn.nowrap
    def record(self, recorder: Recorder, x: Activation) -> Activation:
        return recorder.dense(x, "dense", self.features, bias=True, classifier=self.classifier)
