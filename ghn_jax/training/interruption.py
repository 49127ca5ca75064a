"""Stop a run when it is asked to: finish the step, save, and say that it wants to be resumed.

Schedulers send SIGTERM some time before they take the machine away; Ctrl-C sends SIGINT. A second
signal of the same kind does what it did before: it ends the process at once.
"""

from __future__ import annotations

import signal
import types
from typing import Any

RESUME_STATUS = 75
"""Exit status of a run that was stopped and wants to be resumed: EX_TEMPFAIL of <sysexits.h>."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRunError(RuntimeError):
    """A run was asked to stop; what it did is saved."""


class StopRequest:
    """While its context lasts, notes signals instead of dying of them.

    Attributes:
        is_made: Whether a signal came.
    """

    def __init__(self) -> None:
        self.is_made = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            # Only the main thread may; elsewhere signals are whoever's they were.
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.is_made = True
        signal.signal(number, self._previous[number])
