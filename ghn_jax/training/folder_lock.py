"""A folder that a run writes to belongs to that run: a lock that ends with the process.

The system releases the lock if the process dies, so none is ever left behind; the lock's file stays
and says who had it last. Of several processes of one run, the first one holds the lock. Reading,
such as `ghn_jax.load`, needs none.

On network file systems the lock holds between processes of one machine, and between machines if the
file system passes locks on: NFS with its lock service, Lustre mounted with `-o flock`. Where there
are no locks at all, a warning says so and the run goes on without.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import json
import logging
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Generator
from typing import IO

from ghn_jax.configuration.validation import shorten

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOGGER = logging.getLogger(__name__)
LOCK_FILE = "run.lock"
IN_USE_STATUS = 73
"""Exit status where another run has the folder: EX_CANTCREAT in <sysexits.h>."""

_HELD: dict[pathlib.Path, int] = {}  # folders of this process, and the thread that has each
_GUARD = threading.Lock()  # of the dictionary
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderInUseError(ValueError):
    """Another run writes to the folder."""


@contextlib.contextmanager
def lock_folder(folder: str | pathlib.Path) -> Generator[None]:
    """Hold a folder, created if missing, for the time of the context.

    A thread that has the folder may enter again.

    Args:
        folder: The folder that a run writes to.

    Raises:
        FolderInUseError: If another process or thread has it; says which.
    """
    folder = pathlib.Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    key, thread = folder.resolve(), threading.get_ident()
    with _GUARD:
        owner = _HELD.get(key)
        if owner is None:
            _HELD[key] = thread
    if owner == thread:
        yield
        return
    if owner is not None:
        raise _in_use(folder, "another thread of this process")
    try:
        with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
            _acquire(file, folder)
            _describe_holder(file)
            yield
    finally:
        with _GUARD:
            del _HELD[key]


def _acquire(file: IO[str], folder: pathlib.Path) -> None:
    """Lock the file, which is released when it is closed: at the latest when the process ends."""
    if fcntl is None:
        _LOGGER.warning(
            "%s is not locked, as this system has no flock: start no second run", folder
        )
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.seek(0)
            raise _in_use(folder, _read_holder(file.read(1000))) from None
        if error.errno not in _NO_LOCKS:
            raise
        _warn_once(
            f"the file system of {folder} has no locks ({error.strerror}): start no second run in"
            " a folder"
        )
        return
    kind = _network_file_system(folder)
    if kind is not None:
        _warn_once(
            f"work directories on a network file system ({kind}) are locked against a second run on"
            " this machine, and on others only if the file system passes locks on"
        )


@functools.cache
def _warn_once(message: str) -> None:
    _LOGGER.warning("%s", message)


def _describe_holder(file: IO[str]) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    program = pathlib.Path(sys.argv[0]).name if sys.argv else ""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "program": program, "since": now}
    file.seek(0)
    file.truncate()
    file.write(json.dumps(holder) + "\n")
    file.flush()


def _read_holder(text: str) -> str:
    try:
        holder = json.loads(text)
        host, program, since = (shorten(holder[name], 64) for name in ("host", "program", "since"))
        return f"process {int(holder['pid'])} on {host} ({program}, since {since})"
    # It may be about to be written, or somebody wrote something else.
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "another process"


def _in_use(folder: pathlib.Path, holder: str) -> FolderInUseError:
    return FolderInUseError(
        f"{folder} is in use by {holder}: wait until it ends, or use another folder"
    )


_NETWORK = ("nfs", "lustre", "cifs", "smb", "ceph", "gpfs", "beegfs", "afs", "9p", "fuse.sshfs")


def _network_file_system(folder: pathlib.Path) -> str | None:
    """The kind of the network file system that a folder lies on; None if it is on another."""
    try:
        mounts = pathlib.Path("/proc/self/mounts").read_text(encoding="utf-8")
    except OSError:
        return None
    kind = _kind_of_file_system(folder.resolve(), mounts)
    return kind if kind.startswith(_NETWORK) else None


def _kind_of_file_system(path: pathlib.Path, mounts: str) -> str:
    """The kind that a list of mounts, as in /proc/mounts, has for a path: "ext4", "nfs4", ..."""
    best, kind = pathlib.Path("/"), ""
    for line in mounts.splitlines():
        _, point, this_kind, *_ = line.split()
        mount = pathlib.Path(point.replace("\\040", " "))  # a space in the path
        if path.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, this_kind
    return kind
