"""Reading PyTorch's files: what is understood, and what is refused."""

import io
import os
import pickle
import re
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from ghn_jax.interop.torch_files import read_torch_file


def write_archive(path, data, storages=(), byteorder="little"):
    """Write a file as `torch.save` lays it out."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)
        for index, storage in enumerate(storages):
            archive.writestr(f"archive/data/{index}", storage.tobytes())
    return path


@pytest.fixture
def dump_tensor(monkeypatch, tmp_path):
    """Write {"x": tensor} with a view of a storage, referring to torch as its pickles do."""
    torch, torch_utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", torch_utils)

    class FloatStorage:
        pass

    def _rebuild_tensor_v2(*args):
        pass

    for owner, member in ((torch, FloatStorage), (torch_utils, _rebuild_tensor_v2)):
        member.__module__ = owner.__name__
        member.__qualname__ = member.__name__
        setattr(owner, member.__name__, member)

    storage_marker = object()

    class Tensor:
        def __init__(self, *view):
            self.view = view

        def __reduce__(self):
            return _rebuild_tensor_v2, (storage_marker, *self.view, False, OrderedDict())

    def dump(offset, shape, strides):
        storage = np.arange(12, dtype=np.float32)

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                if value is storage_marker:
                    return ("storage", FloatStorage, "0", "cpu", storage.size)
                return None

        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump({"x": Tensor(offset, shape, strides)})
        return write_archive(tmp_path / "tensor.pt", buffer.getvalue(), [storage])

    return dump


def test_views_of_a_storage_are_read(dump_tensor):
    found = read_torch_file(dump_tensor(1, (2, 3), (1, 4)))["x"]
    np.testing.assert_array_equal(found, [[1, 5, 9], [2, 6, 10]])
    found[0, 0] = 7  # an array of its own


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(10, (3,), (1,)), (0, (2, 3), (1, 8))],
)
def test_views_beyond_their_storage_are_refused(dump_tensor, offset, shape, strides):
    with pytest.raises(ValueError, match="expected less than the 12 of its storage"):
        read_torch_file(dump_tensor(offset, shape, strides))


def test_views_larger_than_their_storage_are_refused(dump_tensor):
    with pytest.raises(ValueError, match="has more elements than the 12 of its storage"):
        read_torch_file(dump_tensor(0, (2**40,), (0,)))


def test_views_backwards_are_refused(dump_tensor):
    with pytest.raises(ValueError, match=r"strides \(-1,\)"):
        read_torch_file(dump_tensor(3, (3,), (-1,)))


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    path = write_archive(tmp_path / "attack.pt", pickle.dumps({"state_dict": Attack()}))
    with pytest.raises(
        ValueError, match="attack.pt cannot be read: file refers to posix.mkdir, expected only"
    ):
        read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_builtins_are_refused(tmp_path, name):
    path = write_archive(tmp_path / "x.pt", f"cbuiltins\n{name}\n.".encode())
    with pytest.raises(ValueError, match=f"file refers to builtins.{name}"):
        read_torch_file(path)


def test_compressed_files_are_refused(tmp_path):
    """A few kilobytes may hold gigabytes of zeros."""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(10**6))
    with pytest.raises(ValueError, match="bomb.pt cannot be read: archive/data.pkl is compressed"):
        read_torch_file(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="x.pt is not a zip archive"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/weights", b"")
    with pytest.raises(ValueError, match="has 0 entries data.pkl, expected 1"):
        read_torch_file(path)
    with pytest.raises(ValueError, match="byteorder is 'big', expected 'little'"):
        read_torch_file(write_archive(path, pickle.dumps({}), byteorder="big"))
    with pytest.raises(ValueError, match="x.pt cannot be read"):
        read_torch_file(write_archive(path, pickle.dumps({"a": 1})[:-3]))


def tensor_opcodes(key, shape, strides, size):
    """The pickle of a view of a storage of float32."""
    numbers = "".join(f"I{n}\n" for n in shape), "".join(f"I{n}\n" for n in strides)
    return (
        "ctorch._utils\n_rebuild_tensor_v2\n"
        f"((Vstorage\nctorch\nFloatStorage\nV{key}\nVcpu\nI{size}\ntQ"
        f"I0\n({numbers[0]}t({numbers[1]}tI00\nNtR"
    ).encode()


def peak_memory(function):
    """Run a function that raises ValueError; return its text and the memory it took, bytes."""
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return str(error.value), peak


def test_tensors_that_share_a_storage_have_a_limit(tmp_path):
    """Tied parameters share one; 600 copies of 2 MB would be 1.2 GB."""
    storage = np.arange(500_000, dtype=np.float32)
    one = tensor_opcodes("0", (500_000,), (1,), 500_000)
    path = write_archive(tmp_path / "x.pt", b"(" + 4 * one + b"l.", [storage])
    tensors = read_torch_file(path)
    assert len(tensors) == 4 and all((tensor == storage).all() for tensor in tensors)
    write_archive(path, b"(" + 600 * one + b"l.", [storage])
    text, peak = peak_memory(lambda: read_torch_file(path))
    assert text == (
        f"{path} cannot be read: its tensors share storages and have more than 4 times the file's"
        " bytes together"
    )
    assert peak < 8 * storage.nbytes


def test_entries_in_the_same_place_are_refused(tmp_path):
    """Each would be read anew."""
    path = write_archive(tmp_path / "x.pt", pickle.dumps({}), [np.zeros(1000, np.float32)])
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo("archive/data/0")
        for index in range(1, 9):
            again = zipfile.ZipInfo(f"archive/data/{index}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(again, field, getattr(entry, field))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    with pytest.raises(ValueError, match="x.pt cannot be read: its entries have 36.* expected at"):
        read_torch_file(path)


def test_pickles_that_ask_for_memory_are_refused(tmp_path):
    cases = {
        # A place in the reader's table of values, for which Python's own reserves 32 GB.
        b"]r\xff\xff\xff\x7f.": "it numbers a value 2147483647, expected at most",
        # A string and bytes of 2**62.
        b"\x8d" + (2**62).to_bytes(8, "little") + b".": "cannot be read: ",
        b"\x8e" + (2**62).to_bytes(8, "little") + b".": "cannot be read: ",
        b"(" * 10 + b"]" * 100_000 + b"a" * 99_999 + b".": "nests containers more than 100 deep",
        b")" + b"\x85" * 100_000 + b".": "nests containers more than 100 deep",
        # A dict whose key is so deep that its hash would end the process.
        b"})" + b"\x85" * 100_000 + b"Ns.": "nests containers more than 100 deep",
        # Copies of a list or dict that a few bytes would ask for.
        b"ccollections\nOrderedDict\n]\x85R.": "takes 0 positional arguments but 1 was given",
        b"ctorch\nSize\n(" + b"K\x01" * 100 + b"t\x85R.": "tensor has size .*at most 32 ints",
        b"N" * (5 << 20): "data.pkl has 5242880 bytes, expected at most 4194304",
        # What is shown in the error.
        b"(" + b"N" * 10**6 + b"lQ.": r"refers to \[None, None, .*, expected a storage",
        b"c" + b"a" * 10**6 + b"\nb\n.": "refers to aaa",
    }
    for data, message in cases.items():
        path = write_archive(tmp_path / "x.pt", data)
        text, peak = peak_memory(lambda path=path: read_torch_file(path))
        assert re.search(message.replace("expected at most", "expected at most"), text), text
        assert text.startswith(f"{path} cannot be read: ") and "\n" not in text
        assert len(text) < 1200 and peak < 10**8


@pytest.mark.parametrize(
    "view", [((2.0,), (1,)), ((True,), (1,)), ((2**70,), (1,)), ((1,) * 40, (1,) * 40)]
)
def test_sizes_of_another_kind_are_refused(dump_tensor, view):
    with pytest.raises(ValueError, match="expected at most 32 ints from 0"):
        read_torch_file(dump_tensor(0, *view))
