"""Stop a run on request: finish the step, save, and report that the run can be resumed.

Schedulers send SIGTERM some time before they take the machine away; Ctrl-C sends SIGINT. A second
signal of the same kind has its usual effect and ends the process immediately.
"""

from __future__ import annotations

import signal
import types
from typing import Any

RESUME_STATUS = 75
"""Exit status of a stopped run that should be resumed: EX_TEMPFAIL in <sysexits.h>."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRunError(RuntimeError):
    """A run was asked to stop, and has been saved."""


class StopRequest:
    """A context manager that records signals instead of letting them end the process.

    Attributes:
        is_made: Whether a signal was received.
    """

    def __init__(self) -> None:
        self.is_made = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            # Only the main thread may set handlers; in others, signals keep their handlers.
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
