"""Symbolic execution of blocks: shapes, parameter tensors and graph nodes, with nothing allocated.

Every block has, beside its numerical `__call__`, a `record` that runs the same computation on
`Activation`s. What is recorded becomes the plan's shapes and parameter tensors and the nodes of its
graph, so that a block is the only place that knows what it computes, holds and looks like.
"""

from typing import NamedTuple

from ghn_jax.graphs.schema import NO_SHAPE, ParameterTensor, TracedNode


class Activation(NamedTuple):
    """A symbolic activation: its shape without the batch axis and the graph node it comes from."""

    shape: tuple[int, ...]  # (H, W, C) for images, (C,) for vectors
    node: int


class Recorder:
    """Collects nodes and parameter tensors while blocks are executed one after the other."""

    def __init__(self) -> None:
        self.nodes: list[TracedNode] = []
        self.tensors: list[ParameterTensor] = []
        self._prefix: tuple[str, ...] = ()

    def enter(self, name: str) -> None:
        """Put the parameters of what is recorded next under `name`."""
        self._prefix = (name,)

    def node(self, primitive: str, parents: tuple[int, ...], shape=NO_SHAPE) -> int:
        """Add a node and return its index."""
        self.nodes.append(TracedNode(primitive, shape, parents))
        return len(self.nodes) - 1

    def tensor(self, path: tuple[str, ...], shape: tuple[int, ...], node: int, role: str) -> None:
        """Add a parameter tensor that belongs to a node."""
        self.tensors.append(ParameterTensor(self._prefix + path, shape, node, role))

    def convolution(
        self,
        x: Activation,
        kernel: tuple[int, int],
        features: int,
        stride=(1, 1),
        name: str = "kernel",
    ) -> Activation:
        """A convolution without bias, padded by half its kernel."""
        height, width, channels = x.shape
        node = self.node("conv", (x.node,), (features, channels, *kernel))
        self.tensor((name,), (*kernel, channels, features), node, "kernel")
        shape = ((height - 1) // stride[0] + 1, (width - 1) // stride[1] + 1, features)
        return Activation(shape, node)

    def depthwise(self, x: Activation, kernel: int, stride: int, dilation: int) -> Activation:
        """A depthwise convolution without bias."""
        height, width, channels = x.shape
        primitive = "sep_conv" if dilation == 1 else "dil_conv"
        node = self.node(primitive, (x.node,), (channels, 1, kernel, kernel))
        self.tensor(("kernel",), (kernel, kernel, 1, channels), node, "depthwise")
        return Activation(((height - 1) // stride + 1, (width - 1) // stride + 1, channels), node)

    def dense(
        self, x: Activation, name: str, features: int, bias: bool, classifier=False
    ) -> Activation:
        """A linear layer over the last axis: the kernel's node, then the bias's."""
        kind = "classifier_" if classifier else ""
        node = self.node("conv", (x.node,), (features, x.shape[-1], 1, 1))
        self.tensor((name, "kernel"), (x.shape[-1], features), node, kind + "kernel")
        if bias:
            node = self.node("bias", (node,), (features, 1, 1, 1))
            self.tensor((name, "bias"), (features,), node, kind + "bias")
        return Activation((*x.shape[:-1], features), node)

    def norm(self, x: Activation, primitive: str, name: str | None = None) -> Activation:
        """A batch ("bn") or layer ("ln") norm: one node with both its scale and its bias."""
        channels = x.shape[-1]
        node = self.node(primitive, (x.node,), (channels, 1, 1, 1))
        prefix = (name,) if name else ()
        self.tensor((*prefix, "scale"), (channels,), node, "scale")
        self.tensor((*prefix, "bias"), (channels,), node, "bias")
        return Activation(x.shape, node)

    def merge(self, primitive: str, nodes: tuple[int, ...]) -> int:
        """A sum or concat: a node only where two or more different nodes meet."""
        parents = tuple(dict.fromkeys(nodes))
        return self.node(primitive, parents) if len(parents) > 1 else parents[0]
