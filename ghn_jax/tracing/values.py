"""What the tracer knows of a value inside a network: the domain the rules compute on.

A value is a `Constant`, a `Weight` (it depends on parameters but not on the images) or `Data`.
Recognising a norm or an attention takes several primitives, so `Data` remembers what has happened
to it since its node: whether it is a statistic, was normalised, is a product of two activations.
"""

import dataclasses
from typing import NamedTuple

from ghn_jax.tracing.views import View


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """Depends on neither images nor parameters.

    Attributes:
        is_state: Computed from running statistics.
        is_deviation: A (reciprocal) square root of them.
    """

    is_state: bool = False
    is_deviation: bool = False


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
        factors: Matrix products of two parameters that are added to the views.
        joined: The weights that it is a concatenation of.
    """

    parameters: frozenset[int]
    views: tuple[View, ...] = ()
    norm: str | None = None
    norm_nodes: tuple[int, ...] = ()
    chosen_by: tuple[int, ...] = ()
    factors: "tuple[tuple[Weight, Weight], ...]" = ()
    joined: "Joined | None" = None


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
    """

    norm: str
    kind: str
    is_deviation: bool = False
    window: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """Depends on the images.

    Attributes:
        nodes: The nodes it comes from; several only for a product that may become attention.
        statistic: Set if it is a reduction of its node.
        norm: "bn" or "ln" if normalised and not scaled by a parameter since.
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
    """

    nodes: tuple[int, ...]
    statistic: Statistic | None = None
    norm: str | None = None
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
