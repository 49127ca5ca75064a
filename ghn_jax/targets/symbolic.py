"""Symbolic execution of blocks: shapes, parameter tensors and graph nodes, without allocation.

Besides its numerical `__call__`, every block has a method `record` that runs the same computation
on `Activation`s. The recorded values become the plan's shapes, parameter tensors and graph nodes,
so a block alone defines what it computes, which parameters it holds and which nodes it has.
"""

from typing import NamedTuple

from ghn_jax.graphs.schema import NO_SHAPE, ParameterTensor, TracedNode


class Activation(NamedTuple):
    """A symbolic activation.

    Attributes:
        shape: Shape without the batch axis: (H, W, C) for images, (C,) for vectors.
        node: Index of the graph node that produced it.
    """

    shape: tuple[int, ...]
    node: int


class Recorder:
    """Collects nodes and parameter tensors while blocks run one after the other."""

    def __init__(self) -> None:
        self.nodes: list[TracedNode] = []
        self.tensors: list[ParameterTensor] = []
        self._prefix: tuple[str, ...] = ()

    def enter(self, name: str) -> None:
        """Place the parameters recorded from now on under `name`."""
        self._prefix = (name,)

    def node(
        self, primitive: str, parents: tuple[int, ...], shape: tuple[int, int, int, int] = NO_SHAPE
    ) -> int:
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
        stride: tuple[int, int] = (1, 1),
        name: str = "kernel",
    ) -> Activation:
        """Record a convolution without bias, padded by half its kernel size."""
        height, width, channels = x.shape
        node = self.node("conv", (x.node,), (features, channels, *kernel))
        self.tensor((name,), (*kernel, channels, features), node, "kernel")
        shape = ((height - 1) // stride[0] + 1, (width - 1) // stride[1] + 1, features)
        return Activation(shape, node)

    def depthwise(self, x: Activation, kernel: int, stride: int, dilation: int) -> Activation:
        """Record a depthwise convolution without bias."""
        height, width, channels = x.shape
        primitive = "sep_conv" if dilation == 1 else "dil_conv"
        node = self.node(primitive, (x.node,), (channels, 1, kernel, kernel))
        self.tensor(("kernel",), (kernel, kernel, 1, channels), node, "depthwise")
        return Activation(((height - 1) // stride + 1, (width - 1) // stride + 1, channels), node)

    def dense(
        self, x: Activation, name: str, features: int, bias: bool, classifier: bool = False
    ) -> Activation:
        """Record a linear layer over the last axis: a node for its kernel, then for its bias."""
        kind = "classifier_" if classifier else ""
        node = self.node("conv", (x.node,), (features, x.shape[-1], 1, 1))
        self.tensor((name, "kernel"), (x.shape[-1], features), node, kind + "kernel")
        if bias:
            node = self.node("bias", (node,), (features, 1, 1, 1))
            self.tensor((name, "bias"), (features,), node, kind + "bias")
        return Activation((*x.shape[:-1], features), node)

    def norm(self, x: Activation, primitive: str, name: str | None = None) -> Activation:
        """Record a batch ("bn") or layer ("ln") norm: one node for both its scale and its bias."""
        channels = x.shape[-1]
        node = self.node(primitive, (x.node,), (channels, 1, 1, 1))
        prefix = (name,) if name else ()
        self.tensor((*prefix, "scale"), (channels,), node, "scale")
        self.tensor((*prefix, "bias"), (channels,), node, "bias")
        return Activation(x.shape, node)

    def merge(self, primitive: str, nodes: tuple[int, ...]) -> int:
        """Record a sum or concat, which is a node only if two or more different nodes meet."""
        parents = tuple(dict.fromkeys(nodes))
        return self.node(primitive, parents) if len(parents) > 1 else parents[0]
