"""Event loops that outlive what they began.

Orbax reads and writes many arrays at once. Where one fails, on a damaged file or a full disk,
it raises that error and closes the loop under the others, each of which then prints a traceback. In
the loops of this module the others end first, and what they say is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

_LONGEST_WAIT = 10.0  # seconds for what is left


class _PatientLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        # Of several failures the first one is raised to the caller.
        self.set_exception_handler(lambda loop, context: None)

    def close(self) -> None:
        if not self.is_closed() and not self.is_running():
            if left := asyncio.all_tasks(self):
                self.run_until_complete(asyncio.wait(left, timeout=_LONGEST_WAIT))
        super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _PatientLoop()


def use_patient_loops() -> None:
    """Make all event loops of the process such ones from now on: for programs."""
    asyncio.set_event_loop_policy(_PatientPolicy())


@contextlib.contextmanager
def patient_loops() -> Iterator[None]:
    """Make event loops that are created within the context such ones."""
    before = asyncio.get_event_loop_policy()
    use_patient_loops()
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
