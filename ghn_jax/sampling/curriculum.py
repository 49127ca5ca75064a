"""Which sizes of architectures training draws at which step.

In: a space, and milestones. Out: the space to draw from at a step. A network of few cells is
learned from at once, costs little and needs few programs; what a GHN learns from such networks
carries over to deeper ones.
"""

from __future__ import annotations

import bisect
import dataclasses
import math

import numpy as np

from ghn_jax.configuration.validation import check_share
from ghn_jax.sampling.space import SpaceConfig

_SHARE_STREAM = 1000  # of the numbers that choose architectures of the whole space


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """How the sizes of training architectures change with the step.

    Attributes:
        num_cells: triples (step, smallest, largest) of the number of cells, ascending by step;
            between two of them both ends change linearly, before the first and after the last they
            stay; none is the space's range throughout.
        widths: pairs (step, widths), ascending by step: what widths are drawn from, from that step
            on; before the first, and with none, those of the space.
        whole_space_share: share of architectures that are drawn from the whole space at any step.
    """

    num_cells: tuple[tuple[int, int, int], ...] = ()
    widths: tuple[tuple[int, tuple[int, ...]], ...] = ()
    whole_space_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_cells", "widths"):
            steps = [milestone[0] for milestone in getattr(self, name)]
            if any(step < 0 for step in steps) or sorted(set(steps)) != steps:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected steps of at least 0, ascending"
                )
        for index, (_, smallest, largest) in enumerate(self.num_cells):
            if not 1 <= smallest <= largest:
                raise ValueError(
                    f"num_cells[{index}] is {self.num_cells[index]!r}, expected (step, smallest,"
                    " largest) with at least one cell"
                )
        check_share("whole_space_share", self.whole_space_share)

    @property
    def is_empty(self) -> bool:
        """Whether every architecture is drawn from the space as it is."""
        return not (self.num_cells or self.widths)

    def check(self, space: SpaceConfig) -> None:
        """Raise ValueError if a milestone gives the space a value that it refuses."""
        steps = {step for step, _, _ in self.num_cells} | {step for step, _ in self.widths}
        for step in sorted(steps):
            self._restrict(space, step)

    def space_at(self, space: SpaceConfig, step: float, seed: int, index: int) -> SpaceConfig:
        """Return the space that one architecture is drawn from.

        Args:
            space: The space of the run.
            step: The step that trains on the architecture.
            seed: Seed of the stream of architectures.
            index: Index of the architecture in the stream.

        Returns:
            The space, the same for the same arguments.
        """
        if self.is_empty:
            return space
        if self.whole_space_share:
            sequence = np.random.SeedSequence(seed, spawn_key=(_SHARE_STREAM, index))
            if np.random.default_rng(sequence).random() < self.whole_space_share:
                return space
        return self._restrict(space, step)

    def _restrict(self, space: SpaceConfig, step: float) -> SpaceConfig:
        changes: dict[str, tuple[int, ...]] = {}
        if self.num_cells:
            steps, smallest, largest = zip(*self.num_cells, strict=True)
            ends = (np.interp(step, steps, smallest), np.interp(step, steps, largest))
            changes["num_cells"] = tuple(math.floor(end + 0.5) for end in ends)
        passed = bisect.bisect_right([first for first, _ in self.widths], step)
        if passed:
            changes["widths"] = self.widths[passed - 1][1]
        return dataclasses.replace(space, **changes)  # type: ignore[arg-type]  # fields of one type
