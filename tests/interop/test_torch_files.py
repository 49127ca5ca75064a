"""Reading PyTorch's files: what is understood, and what is refused."""

import io
import os
import pickle
import sys
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
