"""Stop a run on request: finish the step, save, and report that the run can be resumed.

Schedulers send SIGTERM some time before they take the machine away; Ctrl-C sends SIGINT. A program
calls `exit_on_signals` first of all: from there on, a signal ends it with a sentence and status 75.
While a run has something to save, a `StopRequest` notes the signal instead. A second signal ends
the process immediately.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import types
from typing import Any

RESUME_STATUS = 75
"""Exit status of a stopped run that should be resumed: EX_TEMPFAIL in <sysexits.h>."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRunError(RuntimeError):
    """A run was asked to stop, and has been saved."""


_situation = ""
_is_exiting = threading.Lock()


def exit_on_signals(situation: str = "nothing is to be saved yet") -> None:
    """Let SIGTERM and SIGINT end this program with status 75, which nothing on the way can catch.

    Args:
        situation: What the program is doing or has saved, for the sentence on standard error; call
            again when it changes.
    """
    global _situation
    _situation = situation
    previous = signal.set_wakeup_fd(-1)
    if previous != -1:
        signal.set_wakeup_fd(previous)
    else:
        own, other = os.pipe()
        os.set_blocking(other, False)
        signal.set_wakeup_fd(other, warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(own,), name="signals", daemon=True).start()
    for number in _SIGNALS:
        # Python gives SIGINT a handler of its own. One that a shell set to ignored, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _listen(pipe: int) -> None:
    # The main thread runs handlers between instructions of Python: not while it compiles, or waits
    # for other processes to connect.
    while numbers := os.read(pipe, 16):
        for number in numbers:
            if signal.getsignal(number) is _exit:
                time.sleep(0.5)  # the main thread ends more gently, if it can
                _exit(number, None)


def _exit(number: int, frame: types.FrameType | None) -> None:
    del frame
    if not _is_exiting.acquire(blocking=False):
        return  # the other thread does
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        _restore_defaults()
    name = signal.Signals(number).name
    text = f"error: asked to stop ({name}): {_situation}; the same command goes on from there\n"
    # What was printed is to be read; it cannot be if the signal came in the middle of a print.
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        if is_main:  # another thread might wait for the lock of a print
            sys.stdout.flush()
    os.write(2, text.encode())
    # No exception, since what is being imported or computed may catch it; no cleaning up, as there
    # is nothing that a kill would not leave whole, and threads may take long to end.
    os._exit(RESUME_STATUS)


def _restore_defaults() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


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
        self._restore()

    def _restore(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del number, frame
        self.is_made = True
        if _exit in self._previous.values():
            # Whatever the process is doing, it may be within a library for minutes.
            _restore_defaults()
        else:
            self._restore()
