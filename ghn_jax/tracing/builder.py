"""Collects graph nodes and the parameters that belong to them while a network is traced."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ghn_jax.arrays import TreePath
from ghn_jax.graphs import ArchGraph, ParameterTensor, graph_from_nodes
from ghn_jax.graphs.schema import NO_SHAPE, TracedNode
from ghn_jax.tracing.affine import ONLY_DISTANCE, ONLY_SINE, SCALES_OUTPUTS, AffineNodes
from ghn_jax.tracing.functions import find_obstacle
from ghn_jax.tracing.values import Data, Value, Weight
from ghn_jax.tracing.views import View

NO_USE = "the output does not depend on it"
# Of a parameter of one element; most uses have a name.
ONE_FOR_ALL = "scales all channels alike, as no norm does"

# What is left out within a distance or a sine, and the reason not to predict it.
_LEFT_OUT = {"distance": ("difference", ONLY_DISTANCE), "wave": ("scale", ONLY_SINE)}


class Claim(NamedTuple):
    """A part of a parameter that belongs to a node."""

    view: View
    node: int
    role: str


class _Product(NamedTuple):
    """A product of activations, see `GraphBuilder.settle`."""

    node: int
    parameters: frozenset[int]


class BuiltGraph(NamedTuple):
    """A traced network.

    Attributes:
        graph: The graph, from which a GHN predicts.
        views: For every tensor of the graph, where its elements lie in the network's parameters.
        kept: For every parameter that is not predicted, the reason.
    """

    graph: ArchGraph
    views: tuple[View, ...]
    kept: dict[int, str]


class GraphBuilder:
    """Builds the graph of one network.

    Args:
        batch_size: Batch size of the traced images, a large prime whose multiples identify batch
            axes.
        fixed: For parameters that are not predicted whatever their use, the reason.
        find_initial: Maps the index of a parameter to its initial value, None if that is not known
            without a computation.
    """

    def __init__(
        self,
        batch_size: int,
        fixed: Mapping[int, str] | None = None,
        find_initial: Callable[[int], np.ndarray | None] = lambda index: None,
    ) -> None:
        self.batch_size = batch_size
        self._find_initial = find_initial
        self._fixed = dict(fixed or {})
        self.affine = AffineNodes()
        self.nodes: list[TracedNode] = [TracedNode("input", NO_SHAPE, ())]
        self._claims: list[Claim] = []
        self._reasons: dict[int, str] = {}
        self._pools: dict[tuple, int] = {}
        self._pool_sources: dict[int, tuple[int, ...]] = {}
        self._spliced: set[int] = set()
        self._products: dict[tuple[int, ...], _Product] = {}
        # Prototypes, by their squares, and the nodes that these were added to.
        self._prototypes: set[int] = set()
        self._distances: set[int] = set()

    def has_batch(self, shape: Sequence[int]) -> bool:
        """Return whether an axis of the shape holds the batch."""
        return any(size and size % self.batch_size == 0 for size in shape)

    def node(self, primitive: str, parents: Iterable[int], shape=NO_SHAPE) -> int:
        """Add a node and return its index."""
        self.nodes.append(TracedNode(primitive, tuple(shape), tuple(dict.fromkeys(parents))))
        return len(self.nodes) - 1

    def merge(self, primitive: str, nodes: Iterable[int]) -> int:
        """Return the node where nodes meet: a new one only if two or more of them differ."""
        parents = tuple(dict.fromkeys(nodes))
        return self.node(primitive, parents) if len(parents) > 1 else parents[0]

    def node_of(self, data: Data) -> int:
        """Return the node of a value, and make one of a pending pool or product."""
        if data.within is not None:
            nodes = tuple(self._behind(node, data.within) for node in data.nodes)
            data = dataclasses.replace(data, nodes=tuple(dict.fromkeys(nodes)), within=None)
        statistic = data.statistic
        if statistic is not None and statistic.norm != "bn":
            return self._pool(data, ("global", statistic.kind), statistic.window)
        if len(data.taps) > 1:
            size = math.isqrt(len(data.taps))
            window = (size, len(data.taps) // size)
            return self._pool(data, ("window", data.taps_kind, *sorted(data.taps)), window)
        if data.is_product:
            return self._product(data.nodes).node
        return self.merge("sum", data.nodes)

    def settle(self, nodes: tuple[int, ...], node: int, parameters: frozenset[int]) -> None:
        """State what a product of activations is that does not become attention.

        Args:
            nodes: The nodes of the product.
            node: The node that it is then.
            parameters: Those that act on it, for which the node is theirs.
        """
        self._products[nodes] = _Product(node, parameters)

    def logits(self, data: Data) -> frozenset[int]:
        """Return the parameters that act on a product of activations."""
        return self._product(data.nodes).parameters if data.is_product else frozenset()

    def is_router(self, nodes: Iterable[int], total: Data) -> bool:
        """Return whether a softmax runs over channels, as a router's, and not over tokens.

        Args:
            nodes: The nodes of the logits.
            total: The sum of their exponentials.
        """
        count = math.prod(total.statistic.window) if total.statistic else 1
        return count > 1 and all(self._channels(node) % count == 0 for node in nodes)

    def embed(self, table: View, nodes: Iterable[int]) -> Data:
        """Return the rows of a table, along its first axis, that data at nodes choose."""
        count = table.shape[0]
        features = table.size // count
        node = self.node("conv", (self.merge("sum", nodes),), (features, count, 1, 1))
        self.claim(table.reshape((count, features)), node, "embedding")
        return Data((node,))

    def find_parts(self, node: int, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the nodes that a node concatenates, if they have these sizes, else itself."""
        primitive, _, parents = self.nodes[node]
        if primitive == "concat" and [self.nodes[p].shape[0] for p in parents] == list(sizes):
            return parents
        return (node,) * len(sizes)

    def look_up(self, value: Value) -> Value:
        """Return a chosen weight as the data that it is where it is no kernel."""
        if not isinstance(value, Weight) or not value.chosen_by:
            return value
        return self.embed(value.views[0].lift(), value.chosen_by)

    def leads_to(self, sources: Iterable[int], targets: Iterable[int]) -> bool:
        """Return whether every source is one of the targets, or an ancestor of one."""
        missing, stack, seen = set(sources), list(targets), set()
        oldest = min(missing, default=0)
        while stack and missing:
            node = stack.pop()
            missing.discard(node)
            if node > oldest and node not in seen:  # parents come before their children
                seen.add(node)
                stack += self.nodes[node].parents
        return not missing

    def is_pool_of(self, node: int, nodes: tuple[int, ...]) -> bool:
        """Return whether a node is a global pool of others."""
        return self._pool_sources.get(node) == nodes

    def gate(self, nodes: tuple[int, int]) -> int:
        """Return the product of an image and its gate, whose pool is no node (docs/method.md)."""
        image, top = min(nodes), max(nodes)
        stack, seen = [top], set()
        while stack:
            node = stack.pop()
            if node <= image or node in seen:
                continue
            seen.add(node)
            if node in self._pool_sources and image in self.nodes[node].parents:
                self._spliced.add(node)
            stack += self.nodes[node].parents
        return self.node("cse", nodes)

    def is_closed(self, view: View) -> bool:
        """Return whether a view is zero at first: a gate that starts closed."""
        initial = self._find_initial(view.parameter)
        if initial is None or np.iscomplexobj(initial):
            return False
        return not np.any(view.read(np.asarray(initial, np.float64)))

    def claim(self, view: View, node: int, role: str) -> None:
        """Give a part of a parameter to a node; a part that has a node already keeps the first."""
        reason = find_obstacle(view.functions, role)
        if reason is None:
            self._claims.append(Claim(view, node, role))
        else:
            self.keep([view.parameter], reason)

    def note_wave(self, data: Data, name: str) -> None:
        """Remember that a sine ("sin") or cosine ("cos") is taken of data."""
        for node in data.nodes:
            behind = self.affine.behind(node)
            if self.nodes[behind.source if behind else node].parents == (0,):
                self.affine.add_wave(node, name)

    def add_squares(self, data: Data, parameters: frozenset[int]) -> Data:
        """Add the squares of parameters to data: x x - 2 x c + c c is a distance from c."""
        self.keep(parameters, ONLY_DISTANCE)
        self._prototypes |= parameters
        node = self.node_of(data)
        self._distances.add(node)
        return Data((node,), within="distance")

    def is_difference(self, data: Data) -> bool:
        """Return whether data are a difference from parameters, perhaps scaled since."""
        if any(node in self._distances for node in data.nodes):
            return True
        return any(self.affine.behind(node, "difference") for node in data.nodes)

    def specify(self, data: Data, reason: str) -> None:
        """State what the parameters of one element do that data were multiplied by."""
        for parameter in data.gates:
            if self._reasons.get(parameter) == ONE_FOR_ALL:
                self._reasons[parameter] = reason

    def keep(self, parameters: Iterable[int], reason: str) -> None:
        """State why parameters that nothing claims are not predicted.

        The first reason holds, unless it says that this is all there is.
        """
        for parameter in parameters:
            if self._reasons.get(parameter) in (None, ONLY_SINE, ONLY_DISTANCE):
                self._reasons[parameter] = reason

    def finish(
        self,
        outputs: Sequence[int],
        paths: Sequence[TreePath],
        shapes: Sequence[tuple[int, ...]],
        num_classes: int | None,
        max_distance: int,
    ) -> BuiltGraph:
        """Keep the nodes that reach the outputs, and decide which parameters are predicted.

        Args:
            outputs: Nodes of the network's outputs.
            paths: Paths of the parameters.
            shapes: Shapes of the parameters.
            num_classes: Number of outputs of a classifier that the GHN predicts as such; None if
                there is no such classifier.
            max_distance: Longest distance that gets an edge.

        Returns:
            The graph, the views of its tensors, and the parameters that are kept.
        """
        self._spliced.update(claim.node for claim in self._claims if self._is_in_distance(claim))
        refused = self.affine.scales_of(outputs)
        for scale in refused.values():
            self.keep(scale.parameters, SCALES_OUTPUTS)
        outputs = [self._behind_scales(node, refused) for node in outputs]
        reached = self._reach(outputs)
        order = sorted(reached - self._spliced)
        index = {node: position for position, node in enumerate(order)}
        nodes = [
            self.nodes[node]._replace(parents=self._new_parents(node, index)) for node in order
        ]
        classifier = {} if num_classes is None else self._classifiers(outputs, num_classes, refused)
        chosen: dict[int, list[Claim]] = {}
        regions = set()
        for claim in self._claims:
            if claim.node not in index or claim.view.region in regions:
                continue
            if self.affine.is_frequency(claim.node):
                self.keep([claim.view.parameter], ONLY_SINE)
                continue
            if claim.node in refused or claim.view.parameter in self._fixed:
                continue
            shares = chosen.setdefault(claim.view.parameter, [])
            if _covered(shares) < math.prod(shapes[claim.view.parameter]):
                regions.add(claim.view.region)
                shares.append(claim)
        kept = {}
        tensors, views = [], []
        for parameter, path in enumerate(paths):
            claims, size = chosen.get(parameter, []), math.prod(shapes[parameter])
            if parameter in self._fixed:
                kept[parameter] = self._fixed[parameter]
            elif not claims:
                kept[parameter] = self._reasons.get(parameter, NO_USE)
            elif _covered(claims) < size:
                partly = f"only {_covered(claims)} of its {size} elements are used"
                kept[parameter] = self._reasons.get(parameter, partly)
            else:
                for claim in claims:
                    role = classifier.get((claim.node, claim.role), claim.role)
                    view = _as_classifier(claim.view) if role != claim.role else claim.view
                    tensors.append(ParameterTensor(path, view.shape, index[claim.node], role))
                    views.append(view)
        return BuiltGraph(graph_from_nodes(nodes, tensors, max_distance), tuple(views), kept)

    def _is_in_distance(self, claim):
        return claim.role == "kernel" and claim.view.parameter in self._prototypes

    def _channels(self, node):
        """Number of channels, that of the nearest node that has one; 1 if there is none."""
        while True:
            primitive, shape, parents = self.nodes[node]
            if shape[0] and not primitive.endswith("_pool"):
                return shape[1] if primitive == "pos_enc" else shape[0]
            if not parents:
                return 1
            node = parents[-1]

    def _product(self, nodes):
        if nodes not in self._products:
            node = self.node("cse", nodes) if len(nodes) > 1 else nodes[0]
            self.settle(nodes, node, frozenset())
        return self._products[nodes]

    def _behind(self, node, within):
        kind, reason = _LEFT_OUT[within]
        found = self.affine.behind(node, kind)
        if found is None:
            return node
        self.keep(found.parameters, reason)
        return found.source

    def _behind_scales(self, node, scales):
        while node in scales:
            node = scales[node].source
        return node

    def _pool(self, data: Data, kind: tuple, window: tuple[int, ...]) -> int:
        key = (data.nodes, *kind)
        if key not in self._pools:
            source = self.merge("sum", data.nodes)
            if kind == ("global", "avg"):
                node = self.node("glob_avg", (source,))
            else:
                node = self.node(f"{kind[1]}_pool", (source,), pool_shape(window))
            self._pools[key] = node
            if kind[0] == "global":
                self._pool_sources[node] = data.nodes
        return self._pools[key]

    def _reach(self, outputs):
        reached: set[int] = set()
        stack = list(outputs)
        while stack:
            node = stack.pop()
            if node not in reached:
                reached.add(node)
                stack += self.nodes[node].parents
        return reached

    def _new_parents(self, node, index):
        parents: list[int] = []
        for parent in self.nodes[node].parents:
            if parent in self._spliced:
                parents += self._new_parents(parent, index)
            else:
                parents.append(index[parent])
        return tuple(dict.fromkeys(parents))

    def _classifiers(self, outputs, num_classes, refused):
        """Roles of the tensors of the last linear layer, if it is as wide as the GHN's."""
        roles = {}
        for node in outputs:
            bias = None
            while node in refused or self.nodes[node].primitive in ("bias", "glob_avg"):
                bias = node if self.nodes[node].primitive == "bias" else bias
                (node,) = self.nodes[node].parents
            primitive, shape, _ = self.nodes[node]
            if primitive == "conv" and (shape[0], *shape[2:]) == (num_classes, 1, 1):
                roles[node, "kernel"] = "classifier_kernel"
                if bias is not None:
                    roles[bias, "bias"] = "classifier_bias"
        return roles


def pool_shape(window: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the shape of a pool's node, (1, 1, height, width)."""
    sizes = [*window, 1, 1]
    return (1, 1, sizes[0], sizes[1])


def _covered(claims):
    return sum(_num_elements(claim.view) for claim in claims)


def _num_elements(view):
    # A grid of positions predicts all tokens, also those beyond the grid.
    return math.prod(next((shape for kind, shape, _ in view.steps if kind == "shrink"), view.shape))


def _as_classifier(view):
    return view.reshape(view.shape[-2:]) if len(view.shape) == 4 else view
