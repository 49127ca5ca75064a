"""Notice within seconds that another process of the run is gone, and end with a sentence.

Collectives wait for all processes; the error of JAX's own service comes after a minute and a half.
Here every process has a connection to the first one, which the system closes when a process dies.
A machine that vanishes from the network is noticed by the connection's own probes, after about ten
seconds.

JAX can notice the same death first: a collective fails, or, if it was the first process, which is
JAX's coordinator, JAX prints several lines and aborts. Both are held up until the sentence is out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator

import jax
import numpy as np
from jax.experimental import multihost_utils

_WORKING, _DONE = b"w", b"d"
_GONE = b"g"  # then the process's number
_NAME_SIZE = 256
_CONNECT_SECONDS = 60.0
_NOTICE_SECONDS = 5.0

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_Handler
def _hold_up_abort(_: int) -> None:
    """Give the watch time to notice the same death and leave; if it does not, abort goes on."""
    time.sleep(_NOTICE_SECONDS)


def _set_abort_handler(handler: int | None) -> int | None:
    """Set what C's abort() calls, and return what it called before.

    Handlers of Python's `signal` run later, in the main thread: too late for an abort.
    """
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes = (ctypes.c_int, ctypes.c_void_p)
    set_handler.restype = ctypes.c_void_p
    return set_handler(signal.SIGABRT, handler)


class _Watch:
    """The connections of this process: of the first one to all others, of others to the first."""

    def __init__(self, peers: dict[int, socket.socket]) -> None:
        self._peers = peers
        self._is_working = False
        self._describe: Callable[[], str] = str
        self._status = 1
        self._lock = threading.Lock()
        self._states: dict[int, bytes] = dict.fromkeys(peers, _DONE)
        self._abort_handler: int | None = None
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def begin(self, describe: Callable[[], str], status: int) -> None:
        """Tell the others that this process takes part in a run, and watch them."""
        with self._lock:
            self._is_working, self._describe, self._status = True, describe, status
        self._abort_handler = _set_abort_handler(ctypes.cast(_hold_up_abort, ctypes.c_void_p).value)
        self._send(_WORKING)

    def end(self) -> None:
        """Tell the others that they need this process no more, nor this process them."""
        self._stop()
        self._send(_DONE)

    def fail(self) -> None:
        """Tell the others that this process has failed."""
        self._stop()
        self._send(_GONE + str(jax.process_index()).encode())

    def _stop(self) -> None:
        with self._lock:
            self._is_working = False
        _set_abort_handler(self._abort_handler)

    def _send(self, message: bytes) -> None:
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(message)

    def _listen(self) -> None:
        open_peers = dict(self._peers)
        while open_peers:
            readable, _, _ = select.select(list(open_peers.values()), [], [])
            for number in [n for n, c in open_peers.items() if c in readable]:
                try:
                    message = open_peers[number].recv(64)
                except OSError:
                    message = b""
                if not message:
                    del open_peers[number]
                    if self._states[number] != _DONE:
                        self._leave(number)
                elif _GONE in message:
                    self._leave(int(message.partition(_GONE)[2]))
                else:
                    self._states[number] = message[-1:]

    def _leave(self, number: int) -> None:
        """End this process, unless it needs the others no more."""
        with self._lock:
            if not self._is_working:
                return
        self._send(_GONE + str(number).encode())
        text = (
            f"error: process {number} of {jax.process_count()} is gone: {self._describe()}; start"
            " all processes again with the same command to go on\n"
        )
        os.write(2, text.encode())
        # The main thread waits for the others within a library, which nothing interrupts.
        os._exit(self._status)


_watch: _Watch | None = None


def watch_peers() -> None:
    """Connect the processes of the run; call this on all of them, once JAX has connected them.

    Raises:
        OSError: If the first process cannot be reached.
    """
    global _watch
    if jax.process_count() == 1 or _watch is not None:
        return
    number, count = jax.process_index(), jax.process_count()
    with contextlib.ExitStack() as stack:
        listener = None
        address = np.zeros(_NAME_SIZE, np.uint8)
        if number == 0:
            listener = stack.enter_context(socket.create_server(("", 0), backlog=count))
            listener.settimeout(_CONNECT_SECONDS)
            text = f"{socket.gethostname()} {listener.getsockname()[1]}".encode()[:_NAME_SIZE]
            address[: len(text)] = np.frombuffer(text, np.uint8)
        received = np.asarray(multihost_utils.broadcast_one_to_all(address), np.uint8)
        peers: dict[int, socket.socket] = {}
        if listener is not None:
            while len(peers) < count - 1:
                connection, _ = listener.accept()
                peer = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
                if 0 < peer < count:
                    peers[peer] = connection
        else:
            host, port = bytes(received).rstrip(b"\0").decode().split()
            peers[0] = _connect(host, int(port))
            peers[0].sendall(number.to_bytes(4, "big"))
    for connection in peers.values():
        connection.settimeout(None)
        _probe(connection)
    _watch = _Watch(peers)


def _connect(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), _CONNECT_SECONDS)
    except OSError:
        # A host's own name need not be known to others: that of JAX's coordinator is.
        coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS", "").rpartition(":")[0]
        if not coordinator:
            raise
        return socket.create_connection((coordinator.strip("[]"), port), _CONNECT_SECONDS)


def _probe(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
    for name, value in (*options, ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, name):  # seconds, seconds, probes, milliseconds; not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextlib.contextmanager
def needing_peers(
    describe: Callable[[], str], status: int, orderly: type[BaseException]
) -> Generator[None]:
    """End this process if another one dies or fails within the context.

    Does nothing where `watch_peers` has not been called, or there is one process.

    Args:
        describe: Says what is saved, for the sentence on standard error.
        status: The status to end with.
        orderly: The error by which all processes leave the context together.
    """
    if _watch is None:
        yield
        return
    _watch.begin(describe, status)
    try:
        yield
    except orderly:
        _watch.end()
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(_NOTICE_SECONDS)
        _watch.fail()
        raise
    _watch.end()
