"""Compute a function of 0, 1, 2, ... ahead of time in other processes, with results in order.

The function must be one that can be sent to other processes; the results come from an iterator. A
worker that dies (killed, or out of memory) is replaced and its work is repeated, a few times; then
the iterator raises. A worker that was stopped (SIGSTOP) counts as dead after a minute. Nothing
waits for a worker that is gone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import pickle
import queue
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)
MAX_RESTARTS = 3
"""How often dead workers are replaced in a run, since some would die again and again."""

STOPPED_SECONDS = 60
"""How long a worker may be stopped before it is replaced."""
_SILENT_SECONDS = 300  # of a worker that runs, before a word is said


class WorkerError(RuntimeError):
    """Workers died repeatedly."""


class _Process(NamedTuple):
    """A worker, and this process's end of the pipe to it."""

    process: multiprocessing.process.BaseProcess
    pipe: multiprocessing.connection.Connection


class Workers(Generic[T]):
    """An iterator over fn(start), fn(start + 1), ..., computed ahead of time in processes.

    A thread for each process sends it an argument and waits for the result. Each has a pipe of its
    own, of which no other process has the far end: a worker that is killed, even in the middle of a
    result, ends its pipe and nobody else's.

    Args:
        fn: The function, which is pickled once. The iterator raises its errors.
        start: The first argument.
        num_workers: Number of processes, which start immediately.
        num_ahead: Maximum number of results that are computed ahead, which bounds memory.
        name: What is computed, for messages.
    """

    def __init__(
        self, fn: Callable[[int], T], start: int, num_workers: int, num_ahead: int, name: str
    ) -> None:
        self._num_workers = num_workers
        self._name = name
        self._restarts = 0
        self._is_closed = False
        self._lock = threading.Lock()  # of the two above, and of the processes
        self._processes: set[multiprocessing.process.BaseProcess] = set()
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        # A file, since what is passed to a process at its start is written to a pipe that this
        # process holds open at both ends: more than fits is waited for even if the other is killed.
        self._file = tempfile.NamedTemporaryFile(prefix="ghn_jax_worker_")
        self._path = self._file.name
        try:
            pickle.dump(fn, self._file)
            self._file.flush()
        except BaseException:
            self._file.close()
            raise
        if os.path.exists(opened := f"/proc/{os.getpid()}/fd/{self._file.fileno()}"):
            os.unlink(self._path)  # nothing stays of it even if this process is killed
            self._path = opened
        self._threads = concurrent.futures.ThreadPoolExecutor(num_workers, f"workers {name}")
        self._arguments = itertools.count(start)
        self._pending: collections.deque[concurrent.futures.Future[T]] = collections.deque()
        for _ in range(num_ahead):
            self._submit(next(self._arguments))

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        result = self._pending.popleft().result()
        self._submit(next(self._arguments))
        return result

    def pids(self) -> list[int]:
        """Return the ids of the current worker processes."""
        with self._lock:
            return [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._is_closed = True
            processes = list(self._processes)
        for process in processes:
            process.kill()  # a stopped one does not hear anything else
        self._pending.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in processes:
            process.join()
        with contextlib.suppress(FileNotFoundError):
            self._file.close()

    def __enter__(self) -> Workers[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _submit(self, argument: int) -> None:
        self._pending.append(self._threads.submit(self._compute, argument))

    def _compute(self, argument: int) -> T:
        """Compute in a process, in another one if it dies; WorkerError if too many have died."""
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                worker = self._start()
            try:
                worker.pipe.send(argument)
                is_result, value = self._receive(worker)
            # A worker that is killed ends its pipe, perhaps in the middle of a result.
            except (EOFError, OSError, pickle.UnpicklingError):
                self._discard(worker)
                continue
            self._idle.put(worker)
            if is_result:
                result: T = value
                return result
            raise value

    def _start(self) -> _Process:
        # JAX has threads, which a forked process would lack.
        context = multiprocessing.get_context("spawn")
        own, other = context.Pipe()
        process = context.Process(target=_serve, args=(other, self._path), daemon=True)
        with self._lock:
            if self._is_closed:
                raise WorkerError(f"the processes that prepare {self._name} are closed")
            process.start()
            self._processes.add(process)
        other.close()
        return _Process(process, own)

    def _receive(self, worker: _Process) -> tuple[bool, Any]:
        """Wait for a result; a worker that is stopped for too long is killed."""
        stopped = silent = 0
        while not worker.pipe.poll(1.0):
            # Counted here rather than read from a clock, which goes on while this process itself
            # is stopped, as by Ctrl-Z in a terminal.
            silent += 1
            stopped = stopped + 1 if _is_stopped(worker.process.pid) else 0
            if stopped >= STOPPED_SECONDS:
                _LOGGER.warning(
                    "process %d, which prepares %s, has been stopped (SIGSTOP) for %d s and is"
                    " killed",
                    *(worker.process.pid, self._name, stopped),
                )
                worker.process.kill()
            elif silent % _SILENT_SECONDS == 0:
                _LOGGER.warning(
                    "process %d, which prepares %s, has not answered for %d s",
                    *(worker.process.pid, self._name, silent),
                )
        is_result, value = worker.pipe.recv()
        return is_result, value

    def _discard(self, worker: _Process) -> None:
        """Forget a worker that died; WorkerError if too many have."""
        worker.process.kill()  # a half result may also be a process that still runs
        worker.process.join()
        worker.pipe.close()
        with self._lock:
            self._processes.discard(worker.process)
            if self._is_closed:
                raise WorkerError(f"the processes that prepare {self._name} are closed")
            self._restarts += 1
            restarts = self._restarts
        if restarts > MAX_RESTARTS:
            raise WorkerError(
                f"processes that prepare {self._name} died {MAX_RESTARTS + 1} times (the last one"
                f" {_describe_end(worker.process.exitcode)}): they are killed from outside, or"
                f" memory does not suffice for num_workers = {self._num_workers}, or the script"
                " that was started trains outside of `if __name__ == '__main__':`, so that every"
                " process starts training anew"
            )
        _LOGGER.warning(
            "a process that prepares %s died; starting anew (%d of %d)",
            *(self._name, restarts, MAX_RESTARTS),
        )


def _describe_end(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"with status {exitcode}"
    return f"by signal {signal.Signals(-exitcode).name}"


def _is_stopped(pid: int | None) -> bool:
    """Whether a process is stopped by a signal; False where the system does not tell."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == "T"  # the name before may hold anything


def _serve(pipe: multiprocessing.connection.Connection, path: str) -> None:
    """Answer each argument with (True, result) or (False, error), in a worker."""
    # Ctrl-C reaches every process of the terminal. The trainer saves; until then it needs workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fn = pickle.loads(pathlib.Path(path).read_bytes())
    # A worker computes with numpy; should anything ask JAX, no accelerator is taken for it. JAX
    # reads the variable when it is imported, which unpickling `fn` may have done already.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    with contextlib.suppress(EOFError):  # the end of the trainer
        while True:
            pipe.send(_answer(fn, pipe.recv()))


def _answer(fn: Callable[[int], Any], argument: int) -> tuple[bool, Any]:
    try:
        return True, fn(argument)
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return False, error


def _end_with_parent() -> None:
    # Of a trainer that was killed, no worker stays.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
