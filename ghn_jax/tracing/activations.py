"""How large the activations of a network are, layer by layer, and how to bring them to a scale.

In: the jaxpr of a network, its variables and a batch of images. Out: the root mean square of the
output of every layer in the order of depth; or the variables with every layer multiplied by a
number, so that these are given ones.

A layer is a convolution or a dot product of data with a predicted parameter, before its bias. The
jaxpr is run primitive by primitive (`execution`); beside every value runs what is known of it: of
which parameters it is made, and of which layer it is the output.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.arrays import PyTree
from ghn_jax.tracing.execution import Execution

# A leaf of the variables and, where a scan runs over its first axes, the iteration.
Source = tuple[int, tuple[int, ...]]
Sources = frozenset[Source]

KEPT = "a part of its kernel is kept as initialised"
COMPUTED = "its kernel is computed from parameters, not a multiple of one"
SHARED = "its kernel also acts elsewhere, which would change, too"
NO_SCALE = "its output is zero or not finite"

# Primitives of one kernel that keep it a rearrangement, and of data that keep it a layer's output.
_SAME_SHAPE = frozenset(("convert_element_type", "copy", "reduce_precision", "sharding_constraint"))
_REARRANGES = _SAME_SHAPE | frozenset(
    "reshape transpose squeeze expand_dims broadcast_in_dim rev slice dynamic_slice gather split"
    " concatenate".split()
)


class Measured(NamedTuple):
    """What a network did on a batch.

    Attributes:
        scales: For every layer, in the order of depth, the root mean squares of its output, one for
            every time that it is used.
        met: Parameters that met data and were neither kernel nor bias there.
    """

    scales: dict[Sources, list[float]]
    met: frozenset[Source]


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkOnImages:
    """A network on a batch of images.

    Attributes:
        jaxpr: A closed jaxpr of (leaves of the variables, leaves of the inputs) -> outputs.
        inputs: The inputs, arrays.
        names: Names of the leaves of the variables.
        predicted: Indices of those leaves that a GHN predicts.
    """

    jaxpr: Any
    inputs: tuple[Any, ...]
    names: tuple[str, ...]
    predicted: frozenset[int]

    def measure(self, variables: PyTree) -> Measured:
        """Run the network, and return what it did."""
        run = self._run(_Measurement(self.predicted), variables)
        return Measured(run.scales, frozenset(run.met))

    def correct(self, variables: PyTree, wanted: Measured) -> tuple[PyTree, dict[Sources, str]]:
        """Multiply kernel and bias of every layer so that its output gets the wanted scale.

        It is one pass: a layer's factor is found on what the layers before it give once they are
        multiplied. One that is used several times is brought to scale where it is used first.

        Args:
            variables: The network's variables.
            wanted: What `measure` returned, of the same network with other variables.

        Returns:
            New variables, and why layers were left as they are.
        """
        run = self._run(_Correction(self.predicted, wanted), variables)
        leaves, structure = jax.tree.flatten(variables)
        changed = {source: factor for source, factor in run.factors.items() if factor != 1}
        for leaf in {leaf for leaf, _ in changed}:
            leaves[leaf] = np.array(leaves[leaf])
        for (leaf, index), factor in changed.items():
            part = leaves[leaf][index]
            leaves[leaf][index] = (part.astype(np.float64) * factor).astype(part.dtype)
        return jax.tree.unflatten(structure, leaves), run.obstacles

    def name(self, sources: Sources) -> str:
        """Return the name of a layer: the paths of its kernel, the iteration in brackets."""
        return " + ".join(
            self.names[leaf] + "".join(f"[{step}]" for step in index)
            for leaf, index in sorted(sources)
        )

    def _run(self, run, variables):
        leaves = jax.tree.leaves(variables)
        weights = [
            _Value(jnp.asarray(leaf), frozenset({(index, ())}), True, True)
            for index, leaf in enumerate(leaves)
        ]
        run.run(self.jaxpr, [*weights, *(_Value(x, is_data=True) for x in self.inputs)])
        return run


class _Value(NamedTuple):
    """An array and what is known of it.

    `is_multiple`: it is a rearrangement of one parameter, or of several side by side, times a
    number. `is_aligned`: its first axis is that of the parameter.
    """

    array: Any
    sources: Sources = frozenset()
    is_multiple: bool = False
    is_aligned: bool = False
    is_data: bool = False
    layer: Sources | None = None


class _Measurement(Execution):
    def __init__(self, predicted: frozenset[int]) -> None:
        self.scales: dict[Sources, list[float]] = {}
        self.met: set[Source] = set()
        self._predicted = predicted

    def lift(self, array):
        return _Value(array)

    def array_of(self, value):
        return value.array

    def take_row(self, value, step):
        row = super().take_row(jnp.asarray(value.array), step)
        if not value.is_aligned:
            return value._replace(array=row)
        sources = frozenset((leaf, (*index, step)) for leaf, index in value.sources)
        return value._replace(array=row, sources=sources)

    def stack(self, values, aval):
        array = super().stack([value.array for value in values], aval)
        return _join(array, values)

    def apply(self, eqn, values):
        data = [value for value in values if value.is_data]
        weights = [value for value in values if not value.is_data and value.sources]
        name = eqn.primitive.name
        if data and weights:
            if name in ("conv_general_dilated", "dot_general"):
                (output,) = super().apply(eqn, [value.array for value in values])
                return [self._weigh(weights[0], output)]
            if name in ("add", "add_any", "sub") and weights[0].is_multiple and data[0].layer:
                values = [self.shift(x, data[0].layer) if x is weights[0] else x for x in values]
            else:
                self.met |= _join(None, weights).sources
        outputs = super().apply(eqn, [value.array for value in values])
        if data:
            layer = data[0].layer if name in _REARRANGES and len(data) == 1 else None
            return [_Value(array, is_data=True, layer=layer) for array in outputs]
        if not weights:
            return [_Value(array) for array in outputs]
        is_multiple = all(value.is_multiple for value in weights) and _is_linear(name, values)
        keeps = is_multiple and name not in _REARRANGES - _SAME_SHAPE
        is_aligned = keeps and weights[0].is_aligned
        known = _join(None, weights)._replace(is_multiple=is_multiple, is_aligned=is_aligned)
        return [known._replace(array=array) for array in outputs]

    def weigh(self, kernel: _Value, output: Any) -> Any:
        """Return the output of a layer, and remember its scale."""
        self.scales.setdefault(kernel.sources, []).append(root_mean_square(output))
        return output

    def shift(self, bias: _Value, layer: Sources) -> _Value:
        """Return what is added to a layer's output."""
        return bias

    def _weigh(self, kernel, output):
        if any(leaf in self._predicted for leaf, _ in kernel.sources):
            output = self.weigh(kernel, output)
            return _Value(output, is_data=True, layer=kernel.sources)
        self.met |= kernel.sources
        return _Value(output, is_data=True)


class _Correction(_Measurement):
    def __init__(self, predicted: frozenset[int], wanted: Measured) -> None:
        super().__init__(predicted)
        self.factors: dict[Source, float] = {}
        self.obstacles: dict[Sources, str] = {}
        self._wanted = wanted

    def weigh(self, kernel, output):
        if kernel.sources not in self.scales:
            factor, obstacle = self._find_factor(kernel, output)
            if obstacle:
                self.obstacles[kernel.sources] = obstacle
            for source in kernel.sources:
                self.factors.setdefault(source, factor)
        return super().weigh(kernel, _multiply(output, self.factors[min(kernel.sources)]))

    def shift(self, bias, layer):
        source = min(bias.sources)
        if len(bias.sources) > 1 or source[0] not in self._predicted or self._is_fixed(bias):
            return bias
        factor = self.factors.setdefault(source, self.factors[min(layer)])
        return bias._replace(array=_multiply(bias.array, factor))

    def _find_factor(self, kernel, output):
        if not all(leaf in self._predicted for leaf, _ in kernel.sources):
            return 1.0, KEPT
        if not kernel.is_multiple:
            return 1.0, COMPUTED
        if self._is_fixed(kernel) or not kernel.sources.isdisjoint(self.factors):
            return 1.0, SHARED
        scale, wanted = root_mean_square(output), self._wanted.scales.get(kernel.sources, [0.0])[0]
        factor = wanted / scale if scale > 0 else 0.0
        return (factor, None) if 0 < factor < np.inf else (1.0, NO_SCALE)

    def _is_fixed(self, weight):
        return not weight.sources.isdisjoint(self._wanted.met)


def root_mean_square(array: Any) -> float:
    """Return the root mean square of an array, in double precision: squares do not overflow."""
    array = np.asarray(array)
    kind = np.complex128 if np.iscomplexobj(array) else np.float64
    return float(np.sqrt(np.mean(np.square(np.abs(array.astype(kind)))))) if array.size else 0.0


def _multiply(array, factor):
    return array if factor == 1 else array * jnp.asarray(factor, array.dtype)


def _join(array, values):
    sources = frozenset().union(*(value.sources for value in values))
    return _Value(array, sources, is_data=any(value.is_data for value in values))


def _is_linear(name, values):
    """Whether a primitive keeps a multiple of its parameters, which lie side by side."""
    with_sources = [bool(value.sources) for value in values]
    if name == "concatenate":
        return all(with_sources)
    if name in _REARRANGES or name in ("mul", "neg"):
        return sum(with_sources) == 1
    return name == "div" and with_sources == [True, False]
