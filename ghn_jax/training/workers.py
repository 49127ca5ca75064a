"""Compute a function of 0, 1, 2, ... ahead of time in other processes, with results in order.

The function must be one that can be sent to other processes; the results come from an iterator. A
worker that dies (killed, or out of memory) is replaced and its work is repeated, a few times; then
the iterator raises. Nothing waits for a worker that is gone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)
MAX_RESTARTS = 3
"""How often dead workers are replaced in a run, since some would die again and again."""


class WorkerError(RuntimeError):
    """Workers died repeatedly."""


class Workers(Generic[T]):
    """An iterator over fn(start), fn(start + 1), ..., computed ahead of time in processes.

    Args:
        fn: The function, which is pickled once per worker. The iterator raises its errors.
        start: The first argument.
        num_workers: Number of processes, which start immediately.
        num_ahead: Maximum number of results that are computed ahead, which bounds memory.
        name: What is computed, for messages.
    """

    def __init__(
        self, fn: Callable[[int], T], start: int, num_workers: int, num_ahead: int, name: str
    ) -> None:
        self._fn = fn
        self._num_workers = num_workers
        self._name = name
        self._restarts = 0
        self._arguments = itertools.count(start)
        self._pending: collections.deque[tuple[int, concurrent.futures.Future[T]]]
        self._pending = collections.deque()
        self._pool = self._start_pool()
        for _ in range(num_ahead):
            self._submit(next(self._arguments))

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while True:
            argument, future = self._pending.popleft()
            try:
                result = future.result()
            except BrokenProcessPool as error:
                self._pending.appendleft((argument, future))
                self._restart(error)
                continue
            self._submit(next(self._arguments))
            return result

    def pids(self) -> list[int]:
        """Return the ids of the current worker processes."""
        return list(self._pool._processes or ())

    def close(self) -> None:
        """End the processes."""
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Workers[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start_pool(self) -> concurrent.futures.ProcessPoolExecutor:
        # JAX has threads, which a forked process would lack.
        return concurrent.futures.ProcessPoolExecutor(
            self._num_workers,
            multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self._fn,),
        )

    def _submit(self, argument: int) -> None:
        try:
            future = self._pool.submit(_call, argument)
        except BrokenProcessPool as error:
            future = concurrent.futures.Future()
            future.set_exception(error)
        self._pending.append((argument, future))

    def _restart(self, error: BrokenProcessPool) -> None:
        if self._restarts == MAX_RESTARTS:
            raise WorkerError(
                f"processes that prepare {self._name} died {self._restarts + 1} times ({error}):"
                " they are killed from outside, or memory does not suffice for num_workers ="
                f" {self._num_workers}, or the script that was started trains outside of `if"
                " __name__ == '__main__':`, so that every process starts training anew"
            ) from error
        self._restarts += 1
        _LOGGER.warning(
            "a process that prepares %s died; starting anew (%d of %d)",
            *(self._name, self._restarts, MAX_RESTARTS),
        )
        self._pool.shutdown(wait=False, cancel_futures=True)
        arguments = [argument for argument, _ in self._pending]
        self._pending.clear()
        self._pool = self._start_pool()
        for argument in arguments:
            self._submit(argument)


_fn: Callable[[int], Any] | None = None  # of this worker


def _start_worker(fn: Callable[[int], Any]) -> None:
    global _fn
    _fn = fn
    # Ctrl-C reaches every process of the terminal. The trainer saves; until then it needs workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker computes with numpy; should anything ask JAX, no accelerator is taken for it. JAX
    # reads the variable when it is imported, which unpickling `fn` may have done already.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Of a trainer that was killed, no worker stays.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(argument: int) -> Any:
    assert _fn is not None
    return _fn(argument)
