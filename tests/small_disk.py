"""A disk that is soon full."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """Mount a file system of so many kilobytes in a new folder; skip the test where that fails."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk):
    """Leave no room on a disk; return the file that takes it."""
    path = disk / "filler"
    free = os.statvfs(disk)
    path.write_bytes(b"0" * (free.f_bavail * free.f_frsize))
    return path
