"""Which architectures a split draws: the rules of the DeepNets-1M splits, and restrictions on them.

In: a split's name and restrictions. Out: a frozen `SpaceConfig` (what a config sets) and
`SplitRules` (the numbers that distinguish the splits, docs/method.md, 'Splits'; Knyazev et al.,
NeurIPS 2021, section 3.1 and table 1).

A restriction acts in one of two ways, stated at each field. *Narrowing* limits a choice while
drawing; the remaining options keep their relative probabilities. *Rejecting* draws from the
unrestricted distribution and discards what does not fit; the result is the split's distribution
conditioned on the restriction.
"""

from __future__ import annotations

import dataclasses

from ghn_jax.architectures import ATTENTION_HEADS, OPERATIONS
from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import check_choice, check_positive_int, suggest


@dataclasses.dataclass(frozen=True)
class SplitRules:
    """What distinguishes one split of DeepNets-1M from the others.

    Attributes:
        stream: number of the random stream. Streams never overlap; `wide` shares that of `test`.
        num_cells: smallest and largest number of cells, both inclusive.
        deep_thresholds: numbers from which the threshold that makes a network deep is drawn.
        num_steps: smallest and largest number of steps in networks that are not deep.
        max_steps_deep: largest number of steps in deep networks.
        max_parameters: architectures with more parameters at 32 channels are rejected.
        norm: "some" (half of the small networks have none), "always", or "never".
        channel_factors: factors on the width for (small, large) images.
        preprocess_share: probability of `preprocess` if it is not required, (without, with)
            attention.
    """

    stream: int
    num_cells: tuple[int, int] = (4, 18)
    deep_thresholds: tuple[int, ...] = (7, 8, 9, 10)
    num_steps: tuple[int, int] = (1, 4)
    max_steps_deep: int = 2
    max_parameters: int = 10**7
    norm: str = "some"
    channel_factors: tuple[int, int] = (1, 1)
    preprocess_share: tuple[float, float] = (1.0, 0.2)


SPLITS: dict[str, SplitRules] = {
    "train": SplitRules(stream=0),
    "val": SplitRules(stream=1),
    "test": SplitRules(stream=2),
    "wide": SplitRules(stream=2, channel_factors=(4, 2)),
    "deep": SplitRules(stream=3, num_cells=(10, 36), deep_thresholds=(18,), max_parameters=10**8),
    "dense": SplitRules(stream=4, num_steps=(2, 10), max_steps_deep=6, max_parameters=10**8),
    "bnfree": SplitRules(stream=5, norm="never"),
    "search": SplitRules(
        stream=6,
        num_cells=(6, 20),
        deep_thresholds=(10,),
        num_steps=(1, 6),
        max_steps_deep=3,
        norm="always",
        preprocess_share=(0.8, 0.2),
    ),
}
"""The splits from which architectures can be drawn."""


@dataclasses.dataclass(frozen=True)
class SpaceConfig:
    """A distribution over architectures: a split of DeepNets-1M, possibly restricted.

    With the defaults, the distribution is exactly the split's.

    Attributes:
        split: one of `SPLITS`.
        widths: numbers of channels C to draw from uniformly (narrowing). None uses the rule by
            which the original picks widths in training, here for every split: the published
            evaluation files store widths drawn once. The factor of `wide` applies either way.
        fc_sizes: widths of the hidden linear layers to draw from uniformly (narrowing); None uses
            the rule of training, which ties them to the number of channels.
        allowed_operations: operations that an edge may carry, drawn uniformly (narrowing). If a
            reduction cell should have no learned operations but none of those without is allowed,
            it is drawn from all allowed ones.
        num_cells: smallest and largest number of cells, drawn uniformly (narrowing, though the
            range may also exceed the split's); None uses the split's range.
        max_steps: largest number of steps, drawn uniformly from those left (narrowing); None uses
            the split's.
        global_pool_only: whether every network pools instead of flattening (narrowing).
        max_parameters: limit on the number of parameters at 32 channels and 256 in hidden linear
            layers (rejecting); None uses the split's.
        max_nodes: limit on the number of nodes in the graph (rejecting); None means no limit.
        image_size: height and width of the images in pixels; above 64, networks are the large-image
            variants.
        num_classes: width of the output.
        num_channels: number of image channels.
    """

    split: str = "train"
    widths: tuple[int, ...] | None = None
    fc_sizes: tuple[int, ...] | None = None
    allowed_operations: tuple[str, ...] = OPERATIONS
    num_cells: tuple[int, int] | None = None
    max_steps: int | None = None
    global_pool_only: bool = False
    max_parameters: int | None = None
    max_nodes: int | None = None
    image_size: int = 32
    num_classes: int = 10
    num_channels: int = 3

    def __post_init__(self) -> None:
        check_choice("split", self.split, tuple(SPLITS))
        check_choice("global_pool_only", self.global_pool_only, (False, True))
        check_positive_int("image_size", self.image_size, limits.IMAGE_SIZE)
        check_positive_int("num_classes", self.num_classes, limits.NUM_CLASSES)
        check_positive_int("num_channels", self.num_channels, limits.NUM_CHANNELS)
        for name in ("max_parameters", "max_nodes"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name))
        if self.max_steps is not None:
            check_positive_int("max_steps", self.max_steps, limits.NUM_STEPS)
        self._check_operations()
        self._check_sizes()
        rules = self.rules
        if self.max_steps is not None and self.max_steps < rules.num_steps[0]:
            raise ValueError(
                f"max_steps is {self.max_steps}, expected at least {rules.num_steps[0]}, the fewest"
                f" steps in split {self.split!r}"
            )
        bounds = self.num_cells
        if bounds is not None:
            if not isinstance(bounds, tuple) or len(bounds) != 2:
                raise ValueError(f"num_cells is {bounds!r}, expected None or (smallest, largest)")
            for index, bound in enumerate(bounds):
                check_positive_int(f"num_cells[{index}]", bound, limits.NUM_CELLS)
            if bounds[0] > bounds[1]:
                raise ValueError(f"num_cells is {bounds!r}, expected the smallest number first")

    @property
    def input_sizes(self) -> tuple[int, int, int]:
        """The sizes for which an architecture is lowered: image size, classes and channels."""
        return (self.image_size, self.num_classes, self.num_channels)

    @property
    def rules(self) -> SplitRules:
        """The rules of the split."""
        return SPLITS[self.split]

    def _check_operations(self) -> None:
        allowed = self.allowed_operations
        if not isinstance(allowed, tuple) or not allowed:
            raise ValueError(
                f"allowed_operations is {allowed!r}, expected a non-empty tuple of operations"
            )
        for operation in allowed:
            if operation not in OPERATIONS:
                raise ValueError(
                    f"allowed_operations contains {operation!r}{suggest(operation, OPERATIONS)},"
                    f" expected some of {', '.join(OPERATIONS)}"
                )
        if len(set(allowed)) != len(allowed):
            raise ValueError(f"allowed_operations is {allowed!r}, expected no operation twice")

    def _check_sizes(self) -> None:
        # FactorizedReduce halves the width, and attention splits it into heads.
        divisor = ATTENTION_HEADS if "msa" in self.allowed_operations else 2
        for name, factor in (("widths", divisor), ("fc_sizes", 1)):
            sizes = getattr(self, name)
            if sizes is None:
                continue
            if not isinstance(sizes, tuple) or not sizes:
                raise ValueError(f"{name} is {sizes!r}, expected None or a non-empty tuple of int")
            for size in sizes:
                check_positive_int(name, size, limits.WIDTH)
                if size % factor != 0:
                    raise ValueError(f"{name} contains {size}, expected multiples of {factor}")
