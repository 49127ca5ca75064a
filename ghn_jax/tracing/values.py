"""What the tracer knows of a value inside a network: the domain the rules compute on.

A value is a `Constant`, a `Weight` (it depends on parameters but not on the images) or `Data`.
Recognising a norm or an attention takes several primitives, so `Data` remembers what has happened
to it since its node: whether it is a statistic, was normalised, is a product of two activations.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ghn_jax.tracing.functions import Function, is_linear
from ghn_jax.tracing.views import View

# Larger arrays are masks or tables, which are not looked through.
_MAX_UNIFORM_SIZE = 2**16


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """Depends on neither images nor parameters.

    Attributes:
        is_state: Computed from running statistics.
        is_deviation: A (reciprocal) square root of them.
        value: What all its elements are; None if they differ or are not known.
    """

    is_state: bool = False
    is_deviation: bool = False
    value: float | None = None

    @classmethod
    def of(cls, value: Any) -> "Constant":
        """Return what is known of a literal or an array that a network closes over."""
        if np.ndim(value) == 0 and isinstance(value, int | float | np.floating | np.integer):
            return cls(value=float(value)) if math.isfinite(value) else cls()
        dtype, size = jnp.result_type(value), np.size(value)
        is_real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
        if not is_real or not 0 < size <= _MAX_UNIFORM_SIZE:
            return cls()
        array = np.asarray(value).astype(np.float64)
        first = float(array.flat[0])
        return cls(value=first) if math.isfinite(first) and (array == first).all() else cls()


@dataclasses.dataclass(frozen=True, slots=True)
class Weight:
    """Depends on parameters.

    Attributes:
        parameters: All parameters that the value depends on.
        views: The parameters whose rearrangements add up to the value; empty if it is not such a
            sum.
        norm: "bn" or "ln" if it was multiplied by a reciprocal standard deviation.
        norm_nodes: The nodes that this is the standard deviation of.
        chosen_by: The nodes that choose it from a stack, as a router does; its only view has a
            step "choose".
        products: Matrix products of two parameters that are added to the views.
        joined: The weights that it is a concatenation of.
        is_stopped: Behind `stop_gradient`.
        squared: The parameters of whose squares it is a sum, along some of their axes.
    """

    parameters: frozenset[int]
    views: tuple[View, ...] = ()
    norm: str | None = None
    norm_nodes: tuple[int, ...] = ()
    chosen_by: tuple[int, ...] = ()
    products: "tuple[Product, ...]" = ()
    joined: "Joined | None" = None
    is_stopped: bool = False
    squared: frozenset[int] = frozenset()

    def through(self, function: Function) -> "Weight":
        """Return an elementwise function of the value."""
        if self.joined:
            weights = tuple(weight.through(function) for weight in self.joined.weights)
            return dataclasses.replace(
                self, joined=dataclasses.replace(self.joined, weights=weights)
            )
        if (len(self.views) > 1 or self.products) and not is_linear(function):
            return dataclasses.replace(self, views=(), products=(), squared=frozenset())
        views = tuple(view.through(function) for view in self.views)
        products = tuple(
            product._replace(left=product.left.through(function)) for product in self.products
        )
        squared = self.squared if is_linear(function) else frozenset()
        return dataclasses.replace(self, views=views, products=products, squared=squared)


class Product(NamedTuple):
    """A matrix product, whose axes are those of its factors.

    Attributes:
        left: View (*axes, rank) of one parameter.
        right: View (rank, *axes) of another.
        is_right: For every axis of the product, whether it is the right factor's. Each factor has
            its axes in the order of the product.
    """

    left: View
    right: View
    is_right: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Joined:
    """A concatenation of weights.

    Attributes:
        weights: Each a rearrangement of one parameter.
        sizes: Their sizes along the axis.
        axis: The axis of the concatenation.
    """

    weights: tuple[Weight, ...]
    sizes: tuple[int, ...]
    axis: int


@dataclasses.dataclass(frozen=True, slots=True)
class Statistic:
    """A reduction of data that is not yet known to be a pool or the moment of a norm.

    Attributes:
        norm: "bn" if it reduces over the batch, else "ln".
        kind: "avg" or "max".
        is_deviation: Whether a square root was taken.
        window: Sizes of the reduced axes.
        gain: What it is multiplied by compared to the same of a mean: a sum over n elements has a
            gain of n, its square root one of sqrt(n). None if it is not known.
        power: The power of the reduction that it is: 0.5 or -0.5 after a root.
    """

    norm: str
    kind: str
    is_deviation: bool = False
    window: tuple[int, ...] = ()
    gain: float | None = 1.0
    power: float = 1.0

    def scaled(self, factor: float | None) -> "Statistic":
        """Return the statistic times a factor, None for one that is not known."""
        if self.gain is None or factor is None or factor <= 0:
            return dataclasses.replace(self, gain=None)
        return dataclasses.replace(self, gain=self.gain * factor)

    def gain_of(self, name: str) -> float:
        """Return the root mean square of data multiplied ("mul") or divided ("div") by it."""
        gain = self.gain or 1.0
        return 1 / gain if name == "div" else gain

    def raised(self, exponent: float) -> "Statistic":
        """Return a power of the statistic."""
        gain = self.gain and self.gain**exponent
        return dataclasses.replace(self, gain=gain, power=self.power * exponent)

    def normalizes(self, name: str) -> bool:
        """Return whether data or parameters multiplied or divided by it are normalised."""
        return self.is_deviation and (name == "div") == (self.power > 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """Depends on the images.

    Attributes:
        nodes: The nodes it comes from; several only for a product that may become attention.
        statistic: Set if it is a reduction of its node.
        norm: "bn" or "ln" if normalised and not scaled by a parameter since.
        norm_gain: Its root mean square, if normalised; such as 1 / sqrt(n) after a division by the
            length of n elements.
        open_norm: The norm node that has scaled it, as long as a bias may follow.
        is_exponential: exp of logits.
        is_softmax: exp divided by its sum.
        is_product: A product of two activations, such as queries and keys.
        taps: Starts and strides of the slices of its node that it is the sum or maximum of.
        taps_kind: "avg" or "max".
        is_mask: Comes of a comparison: it chooses between values.
        part: Slices that cut it out of its node, as ranges along axes; empty for all of it.
        shift: Where it begins in its node along each axis; empty for the beginning.
        weighted: The shifted products that it is the sum of.
        gates: Parameters of one element that it was multiplied by.
        within: "distance" within a square or absolute value, "wave" within a sine: what of its
            nodes only subtracts or scales by parameters will be left out.
    """

    nodes: tuple[int, ...]
    statistic: Statistic | None = None
    norm: str | None = None
    norm_gain: float = 1.0
    open_norm: int | None = None
    is_exponential: bool = False
    is_softmax: bool = False
    is_product: bool = False
    taps: frozenset = frozenset()
    taps_kind: str | None = None
    is_mask: bool = False
    part: tuple[tuple[range, ...], ...] = ()
    shift: tuple[int, ...] = ()
    weighted: "tuple[Tap, ...]" = ()
    gates: frozenset[int] = frozenset()
    within: str | None = None


class Tap(NamedTuple):
    """Data with a shift, scaled by a vector.

    Attributes:
        node: The node of the data.
        shift: See `Data.shift`.
        view: The vector.
    """

    node: int
    shift: tuple[int, ...]
    view: View


Value = Constant | Weight | Data
