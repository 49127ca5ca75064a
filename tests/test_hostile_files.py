"""Damaged and hostile files of every kind: they are read, or refused in one line that names them.

Nothing in a file runs, and no file makes its reader take much more memory than its own bytes.
`hostile_readers.py` lists the readers, `file_damage.py` has the damages.
"""

import contextlib
import functools
import io
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from file_damage import damage
from hostile_readers import READERS

from ghn_jax.cli.command_line import errors_in_one_line

SEED = 16
LONGEST_TEXT = 2000  # characters, of an error
MOST_MEMORY = 512 << 20  # bytes that reading one of these files may add, touched or only reserved


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_read_or_refused_in_one_line(reader, tmp_path):
    attack(reader, tmp_path, reader.count)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_many_damaged_files_are_read_or_refused_in_one_line(reader, tmp_path):
    attack(reader, tmp_path, 40 * reader.count, SEED + 1)


def attack(reader, tmp_path, count, seed=SEED):
    """Read damaged files; every failure is shown with the number of its damage."""
    folder = tmp_path / "files"
    folder.mkdir()
    path = Path(reader.make(folder))
    whole = {
        file.relative_to(folder): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    reader.read(path)  # imports what reading needs, too
    marker = tmp_path / "marker"
    donors = [*whole.values(), *hostile_pickles(marker)]
    chosen_from = [name for name in whole if name.match(reader.damaged)]
    failures = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        write_files(folder, whole)
        chosen = chosen_from[generator.integers(len(chosen_from))]
        (folder / chosen).write_bytes(damage(whole[chosen], generator, donors))
        with watching_calls() as calls, measuring_memory() as grown:
            found = read_damaged(reader, path)
        if calls:
            found = f"it makes the system calls {sorted(set(calls))}"
        elif marker.exists():
            found = "a pickle ran"
        elif grown[0] > MOST_MEMORY:
            found = f"it takes {grown[0] >> 20} MB more"
        if found:
            failures.append(f"damage {number}, {chosen}: {found}")
            keep(folder, number)
    assert not failures, f"{len(failures)} of {count}\n" + "\n".join(failures[:30])


def read_damaged(reader, path):
    """Read, and return what is wrong with the way it ends; None for a result or a good error."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), errors_in_one_line():
            reader.read(path)
    except SystemExit as end:
        text = str(end.__context__)
        if len(text) >= LONGEST_TEXT:
            return f"its text has {len(text)} characters: {text[:300]!r}"
        if len(text.splitlines()) != 1:
            return f"its text has several lines, or none: {text[:300]!r}"
        if (reader.named or str(path)) not in text:
            return f"its text names no file: {type(end.__context__).__name__}: {text[:300]!r}"
    except Exception as error:
        return f"a traceback, {type(error).__name__}: {str(error)[:300]!r}"
    return None


def write_files(folder, contents):
    """Make a folder hold these files and nothing else."""
    for file in folder.rglob("*"):
        if file.is_file() and file.relative_to(folder) not in contents:
            file.unlink()
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            (folder / name).write_bytes(content)


class Runs:
    """What a pickle runs: making a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def hostile_pickles(marker):
    """Pickles that run something, also as arrays of numpy hold them."""
    array = io.BytesIO()
    np.save(array, np.array([Runs(marker)], object), allow_pickle=True)
    return [*(pickle.dumps(Runs(marker), protocol) for protocol in (0, 2, 4)), array.getvalue()]


_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen"),
    *("socket.connect", "socket.getaddrinfo", "ctypes.dlopen"),
)
_FORBIDDEN_MODULES = ("os", "posix", "nt", "subprocess", "sys")  # in a pickle
_CALLS: list[list[str]] = []  # that are watched at the moment


def _watch(event, arguments):
    if not _CALLS:
        return
    if event in _FORBIDDEN:
        _CALLS[-1].append(event)
    elif event == "pickle.find_class" and arguments[0] in _FORBIDDEN_MODULES:
        _CALLS[-1].append(f"{event} {arguments}")


@contextlib.contextmanager
def watching_calls():
    """Yield a list of what happens within that no reader of files has to do."""
    _hook()
    _CALLS.append([])
    try:
        yield _CALLS[-1]
    finally:
        _CALLS.pop()


@functools.cache
def _hook():
    sys.addaudithook(_watch)  # for the rest of the process


@contextlib.contextmanager
def measuring_memory():
    """Yield a list that holds, at the end, by how many bytes memory grew at most within.

    Of Linux's counts, the larger one: pages that were touched, and addresses that were reserved.
    """
    if sys.platform != "linux":
        yield [0]
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak of touched pages starts anew
    before, grown = _memory(), []
    yield grown
    after = _memory()
    grown.append(after["VmHWM"] - before["VmRSS"])
    if after["VmPeak"] > before["VmPeak"]:
        grown[0] = max(grown[0], after["VmPeak"] - before["VmSize"])


def _memory():
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[-1] == "kB"}


def keep(folder, number):
    """Keep a copy of a damaged folder where HOSTILE_FILES says, to look into a failure."""
    if "HOSTILE_FILES" in os.environ:
        shutil.copytree(
            folder, Path(os.environ["HOSTILE_FILES"]) / f"{folder.parent.name}_{number}"
        )
