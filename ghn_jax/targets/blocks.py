"""The blocks target networks are composed of: Flax modules that also trace themselves.

A block is static configuration only, so equal blocks are one compiled program. Every `__call__`
takes (B, H, W, C) images, or (B, C) vectors in the head, and returns the same kind. Blocks are as
small as they are because few signatures decide how long a short run compiles: a convolution apart
from its norm is shared by all ops that use either (docs/method.md, 'Operations', lists the ops).
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.layer_norm import LayerNorm
from ghn_jax.targets import operations
from ghn_jax.targets.operations import NATIVE, Operations
from ghn_jax.targets.symbolic import Activation, Recorder

_kernel_init = nn.initializers.he_normal(dtype=jnp.float32)


class Block(nn.Module, kw_only=True):
    """Base of all blocks.

    Attributes:
        operations: What the block computes with; whoever runs the block chooses.
    """

    operations: Operations = dataclasses.field(default=NATIVE, repr=False)

    @nn.nowrap
    def record(self, recorder: Recorder, *inputs: Activation) -> Activation:
        """Run the block on symbolic values, its nodes and parameter tensors to `recorder`."""
        raise NotImplementedError


class Conv(Block):
    """[relu,] convolution without bias, padded by half its odd kernel."""

    features: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    activate: bool = True

    @nn.compact
    def __call__(self, x):
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape)
        return self.operations.convolve(x, kernel, self.stride, self.activate)

    @nn.nowrap
    def record(self, recorder, x):
        return recorder.convolution(x, self.kernel, self.features, self.stride)


class DepthwiseConv(Block):
    """relu, depthwise convolution without bias, padded by half its dilated odd kernel."""

    kernel: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", _kernel_init, (self.kernel, self.kernel, 1, x.shape[-1]))
        return self.operations.convolve_depthwise(x, kernel, self.stride, self.dilation, True)

    @nn.nowrap
    def record(self, recorder, x):
        return recorder.depthwise(x, self.kernel, self.stride, self.dilation)


class BatchNorm(Block):
    """Batch norm on batch statistics, or on running averages where asked.

    Flax's own norm insists on its running averages even where only batch statistics are used, as in
    every evaluation of predicted parameters, and its default variance loses digits to cancellation.
    Running averages live in `batch_stats` (mean, var), updated where that collection is mutable.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, use_running_average: bool = False):
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
    def record(self, recorder, x):
        return recorder.norm(x, "bn")


class FactorizedReduce(Block):
    """relu; two 1x1 stride-2 convolutions, the second a pixel further down and right; concat.

    An odd side has one pixel fewer on the shifted grid: the image is padded with zeros there (the
    published networks only meet even sides).
    """

    features: int

    @nn.compact
    def __call__(self, x):
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
    def record(self, recorder, x):
        half = self.features // 2
        first = recorder.convolution(x, (1, 1), half, (2, 2), name="kernel_1")
        second = recorder.convolution(x, (1, 1), half, (2, 2), name="kernel_2")
        node = recorder.merge("concat", (first.node, second.node))
        return Activation((*first.shape[:2], self.features), node)


class Relu(Block):
    """relu; no node of the graph."""

    def __call__(self, x):
        return jax.nn.relu(x)

    @nn.nowrap
    def record(self, recorder, x):
        return x


class Pool(Block):
    """3x3 max or average pooling, padded by one pixel that the average does not count."""

    kind: str
    stride: int = 1

    def __call__(self, x):
        pool_fn = self.operations.max_pool if self.kind == "max" else operations.average_pool
        return pool_fn(x, self.stride)

    @nn.nowrap
    def record(self, recorder, x):
        node = recorder.node(f"{self.kind}_pool", (x.node,), (1, 1, 3, 3))
        height, width, channels = x.shape
        size = operations.output_size
        return Activation((size(height, self.stride), size(width, self.stride), channels), node)


class Subsample(Block):
    """Every second pixel; no node of the graph."""

    def __call__(self, x):
        return x[:, ::2, ::2]

    @nn.nowrap
    def record(self, recorder, x):
        height, width, channels = x.shape
        return Activation(((height + 1) // 2, (width + 1) // 2, channels), x.node)


class Sum(Block):
    """The sum of two images."""

    def __call__(self, x, y):
        return x + y

    @nn.nowrap
    def record(self, recorder, x, y):
        if x.shape != y.shape:
            raise ValueError(f"cannot add images of shapes {x.shape} and {y.shape}")
        return Activation(x.shape, recorder.merge("sum", (x.node, y.node)))


class Concat(Block):
    """Concatenate on channels; members that a `none` left without output are zeros.

    Attributes:
        present: For every member, whether it is one of the inputs.
    """

    present: tuple[bool, ...]

    def __call__(self, *inputs):
        members = iter(inputs)
        zeros = jnp.zeros_like(inputs[0])
        return jnp.concatenate([next(members) if p else zeros for p in self.present], axis=-1)

    @nn.nowrap
    def record(self, recorder, *inputs):
        height, width, channels = inputs[0].shape
        if any(x.shape != inputs[0].shape for x in inputs):
            raise ValueError(f"cannot concatenate images of shapes {[x.shape for x in inputs]}")
        node = recorder.merge("concat", tuple(x.node for x in inputs))
        return Activation((height, width, channels * len(self.present)), node)


class Attention(Block):
    """x + proj(attention(LN(x))), x + MLP(LN(x)) over pixels as tokens; subsampled at the end."""

    stride: int = 1
    num_heads: int = 8

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        inner = self.num_heads * (channels // self.num_heads)
        x = x.reshape(-1, channels)  # all tokens of all images: products of matrices
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
    def record(self, recorder, x):
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


class SqueezeExcite(Block):
    """Gate channels by fc(relu(fc(mean over pixels))) through hard-swish; subsampled at the end."""

    stride: int = 1

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        gate = jnp.mean(x, axis=(1, 2))
        gate = nn.Dense(channels // 2, kernel_init=_kernel_init, name="squeeze")(gate)
        gate = nn.Dense(channels, kernel_init=_kernel_init, name="excite")(jax.nn.relu(gate))
        x = x * jax.nn.hard_swish(gate)[:, None, None]
        return x[:, :: self.stride, :: self.stride]

    @nn.nowrap
    def record(self, recorder, x):
        height, width, channels = x.shape
        gate = Activation((channels,), x.node)
        gate = recorder.dense(gate, "squeeze", channels // 2, bias=True)
        gate = recorder.dense(gate, "excite", channels, bias=True)
        node = recorder.node("cse", (x.node, gate.node))
        size = operations.output_size
        return Activation((size(height, self.stride), size(width, self.stride), channels), node)


class PatchStem(Block):
    """Split into patches by a convolution with stride = kernel size; add a positional encoding."""

    features: int
    patch: int

    @property
    def padding(self) -> int:
        return 1 if self.patch < 4 else 0

    @nn.compact
    def __call__(self, x):
        shape = (self.patch, self.patch, x.shape[-1], self.features)
        kernel = self.param("kernel", _kernel_init, shape)
        x = operations.convolve_patches(x, kernel, self.padding)
        init = nn.initializers.normal(1.0, jnp.float32)
        return x + self.param("position", init, (1, *x.shape[1:]))

    @nn.nowrap
    def record(self, recorder, x):
        height, width, channels = x.shape
        patch = self.patch
        node = recorder.node("conv", (x.node,), (self.features, channels, patch, patch))
        recorder.tensor(("kernel",), (patch, patch, channels, self.features), node, "kernel")
        rows, columns = ((size + 2 * self.padding) // patch for size in (height, width))
        position = recorder.node("pos_enc", (), (1, self.features, rows, columns))
        recorder.tensor(("position",), (1, rows, columns, self.features), position, "position")
        node = recorder.merge("sum", (node, position))
        return Activation((rows, columns, self.features), node)


class GlobalPool(Block):
    """Mean over pixels: (B, H, W, C) -> (B, C)."""

    def __call__(self, x):
        return jnp.mean(x, axis=(1, 2))

    @nn.nowrap
    def record(self, recorder, x):
        return Activation((x.shape[-1],), recorder.node("glob_avg", (x.node,)))


class Flatten(Block):
    """(B, H, W, C) -> (B, C H W): channels first, as the published networks flatten."""

    def __call__(self, x):
        return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)

    @nn.nowrap
    def record(self, recorder, x):
        return Activation((math.prod(x.shape),), x.node)


class Linear(Block):
    """A linear layer of the head, after relu and dropout if it is not the first.

    Dropout needs a `dropout` random key and rate > 0; without a key it does nothing.
    """

    features: int
    activate: bool = False
    classifier: bool = True
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, x):
        if self.activate:
            x = jax.nn.relu(x)
            drops = self.has_rng("dropout") and not self.is_initializing()
            x = nn.Dropout(self.dropout_rate, deterministic=not drops)(x)
        return nn.Dense(self.features, kernel_init=_kernel_init, name="dense")(x)

    @nn.nowrap
    def record(self, recorder, x):
        return recorder.dense(x, "dense", self.features, bias=True, classifier=self.classifier)
