"""Skip single architectures with a non-finite loss, but stop if there are too many.

For every step, the rule is told which architectures were finite. It counts and logs the others, and
raises `TooManySkippedError` once their share among recent ones is too large. A NaN in one
architecture must not destroy a run (docs/method.md, 'Training protocol'), nor may a diverged run
continue silently.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ghn_jax.configuration.validation import check_count, check_positive_int

_LOGGER = logging.getLogger(__name__)
_NAMED = 20


class TooManySkippedError(RuntimeError):
    """Too many architectures of recent steps had a non-finite loss."""


class SkipRule:
    """Counts skipped architectures and stops the run when there are too many.

    Attributes:
        num_skipped: number of architectures skipped since the run began.
    """

    def __init__(self, max_skipped_share: float, window: int) -> None:
        """Start counting.

        Args:
            max_skipped_share: share in 0..1 of the architectures of recent steps that may be
                skipped.
            window: number of most recent steps that count. Steps not made yet count as finite
                ones, so that a single bad architecture in the first step stops nothing.
        """
        self.max_skipped_share = max_skipped_share
        self.window = window
        self.num_skipped = 0
        # One entry per step: number of architectures, and (step, index, seed) of the skipped.
        self._recent: collections.deque[tuple[int, list[tuple[int, int, int]]]] = collections.deque(
            maxlen=window
        )

    def record(
        self, step: int, architectures: Sequence[tuple[int, int]], finite: Sequence[bool]
    ) -> int:
        """Count one step.

        Args:
            step: number of the step.
            architectures: (index, seed) of each architecture of the step.
            finite: whether the loss (and gradient) of each was finite.

        Returns:
            Number of architectures skipped in this step.

        Raises:
            TooManySkippedError: if more than the allowed share was skipped in the window.
            ValueError: if the two sequences differ in length.
        """
        if len(architectures) != len(finite):
            raise ValueError(
                f"finite has {len(finite)} values, expected {len(architectures)}, one per"
                " architecture"
            )
        skipped = [
            (step, index, seed)
            for (index, seed), is_finite in zip(architectures, finite, strict=True)
            if not is_finite
        ]
        for _, index, seed in skipped:
            _LOGGER.warning(
                "step %d: the loss of the architecture with index %d, seed %d is not finite;"
                " it is skipped",
                step,
                index,
                seed,
            )
        self.num_skipped += len(skipped)
        self._recent.append((len(architectures), skipped))
        self._check()
        return len(skipped)

    def state(self) -> dict[str, Any]:
        """Return the counts as JSON can hold them, for the checkpoint."""
        recent = [[count, [list(entry) for entry in skipped]] for count, skipped in self._recent]
        return {"num_skipped": self.num_skipped, "recent": recent}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        check_count("num_skipped", state["num_skipped"])
        self.num_skipped = state["num_skipped"]
        self._recent.clear()
        for count, skipped in state["recent"]:
            check_positive_int("recent", count)
            for step, index, seed in skipped:
                for name, value in (("step", step), ("index", index), ("seed", seed)):
                    check_count(f"recent.{name}", value)
            self._recent.append((count, [(step, index, seed) for step, index, seed in skipped]))

    def _check(self) -> None:
        skipped = [entry for _, entries in self._recent for entry in entries]
        seen = sum(count for count, _ in self._recent)
        in_full_window = seen * self.window / len(self._recent)
        if len(skipped) <= self.max_skipped_share * in_full_window:
            return
        named = "; ".join(
            f"step {step}: index {index}, seed {seed}" for step, index, seed in skipped[-_NAMED:]
        )
        cut = f"the last {_NAMED} of them: " if len(skipped) > _NAMED else ""
        raise TooManySkippedError(
            f"{len(skipped)} of the {seen} architectures of the last {len(self._recent)} steps had"
            f" a non-finite loss, more than max_skipped_share = {self.max_skipped_share} of a"
            f" window of {self.window} steps allows ({cut}{named}). Lower the learning rate, or"
            " leave the operation that these share out of the space"
        )
