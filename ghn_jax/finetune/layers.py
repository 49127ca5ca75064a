"""The kernels of a network in the order in which data flows through them.

In: a network's graph. Out: its `Layer`s, the last one the classifier, and a way to read their
kernels from the network's variables, whatever the library, and to write them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ghn_jax.arrays import PyTree, TreePath
from ghn_jax.configuration.validation import check_instance
from ghn_jax.graphs import ArchGraph
from ghn_jax.tracing.views import View

KERNEL_ROLES = ("kernel", "depthwise", "embedding", "classifier_kernel")


class Layer(NamedTuple):
    """A kernel of a network.

    Attributes:
        path: Path in the network's parameters of the array that holds the kernel.
        shape: (kh, kw, in, out), or (in, out) for a linear layer.
        view: Where in the array the kernel lies, if the network rearranges or splits the array;
            None if the array is the kernel.
        is_classifier: Whether the graph marks the layer as the classifier.
    """

    path: TreePath
    shape: tuple[int, ...]
    view: View | None = None
    is_classifier: bool = False

    @property
    def name(self) -> str:
        """The path, joined by "/"."""
        return "/".join(self.path)


def layer_order(graph: ArchGraph, views: Sequence[View | None] | None = None) -> list[Layer]:
    """List the kernels of a network in the order of its graph.

    Args:
        graph: The network's graph, with nodes in topological order.
        views: For each tensor of a traced graph, where it lies (`TracedNetwork.views` or
            `Prediction.views`). None if every tensor is an array of its own, as in networks
            of the architecture space.

    Returns:
        The layers whose kernels have two or more axes; norms, biases and positional encodings do
        not count as layers.

    Raises:
        ValueError: If there is not a view for every tensor.
    """
    check_instance("graph", graph, ArchGraph, "the graph of a network, such as prediction.graph")
    views = [None] * len(graph.tensors) if views is None else views
    if len(views) != len(graph.tensors):
        raise ValueError(
            f"views has {len(views)} views, expected one for each of the graph's"
            f" {len(graph.tensors)} tensors"
        )
    layers = [
        (
            tensor.node,
            Layer(tensor.path, tensor.shape, view, tensor.role == "classifier_kernel"),
        )
        for tensor, view in zip(graph.tensors, views, strict=True)
        if tensor.role in KERNEL_ROLES
    ]
    return [layer for _, layer in sorted(layers, key=lambda pair: pair[0])]


class Kernels:
    """Reads and writes the kernels in a network's variables.

    Args:
        variables: Any pytree, whether of Flax (all collections, or `params` alone), NNX, or plain.
        layers: `Layer`s, or the paths of arrays with two or more axes, output channels last.

    Raises:
        ValueError: If a path matches no array or several, or its array has fewer than two axes.
    """

    def __init__(self, variables: PyTree, layers: Iterable[Layer | TreePath | str]) -> None:
        paths, self._structure = jax.tree_util.tree_flatten_with_path(variables)
        self._leaves = [leaf for _, leaf in paths]
        names = [_names(path) for path, _ in paths]
        found = [(_find(names, _path_of(layer)), layer) for layer in layers]
        self._indices = [index for index, _ in found]
        self.layers = [
            layer if isinstance(layer, Layer) else self._plain(index, _path_of(layer))
            for index, layer in found
        ]

    def read(self, number: int) -> np.ndarray:
        """Return the kernel of a layer, in the layer's shape."""
        layer, leaf = self.layers[number], np.asarray(self._leaves[self._indices[number]])
        return leaf if layer.view is None else layer.view.read(leaf)

    def write(self, number: int, kernel: Any) -> None:
        """Replace the kernel of a layer; the original variables are not modified."""
        layer, index = self.layers[number], self._indices[number]
        leaf = self._leaves[index]
        new = np.array(leaf)
        if layer.view is None:
            new[...] = kernel
        else:
            layer.view.restore(new, np.asarray(kernel, new.dtype))
        self._leaves[index] = new

    def variables(self) -> PyTree:
        """Return the variables with everything that was written."""
        return jax.tree.unflatten(self._structure, self._leaves)

    def _plain(self, index: int, path: TreePath) -> Layer:
        shape = tuple(np.shape(self._leaves[index]))
        if len(shape) < 2:
            raise ValueError(
                f"order has the path {'/'.join(path)!r} of an array of shape {shape}, expected two"
                " or more axes, output channels last"
            )
        return Layer(path, shape)


def _path_of(layer: Layer | TreePath | str) -> TreePath:
    if isinstance(layer, Layer):
        return layer.path
    return tuple(layer.split("/")) if isinstance(layer, str) else tuple(layer)


def _names(path: tuple[Any, ...]) -> TreePath:
    """Convert a tree path to strings, without the `value` of an NNX variable."""
    names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
    return names[:-1] if names and names[-1] in ("value", "") else names


def _find(names: Sequence[TreePath], path: TreePath) -> int:
    """Find the leaf at a path, which may lack leading parts such as the collection."""
    exact = [index for index, name in enumerate(names) if name in (path, ("params", *path))]
    ends = [index for index, name in enumerate(names) if name[-len(path) :] == path]
    found = exact or ends
    if len(found) != 1:
        described = f"{len(found)} arrays" if found else "no array"
        some = ", ".join("/".join(name) for name in names[:5])
        raise ValueError(
            f"order has the path {'/'.join(path)!r} of {described}, expected one of the variables"
            f" ({some}, ...)"
        )
    return found[0]
