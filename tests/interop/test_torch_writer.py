"""What is written reads back, and holds only what `torch.load(weights_only=True)` accepts."""

import math
import pickletools
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from ghn_jax.interop.torch_files import read_torch_file
from ghn_jax.interop.torch_writer import write_torch_file

CONTENTS = {
    "epoch": 299,
    "config": {"max_shape": (64, 64, 11, 11), "ve": True, "ln": False, "hid": 32, "none": None},
    "numbers": [0, -1, 127, 128, -128, 255, 256, 2**31, -(2**31), 2**70, 0.1, -math.inf],
    "text": "Grüße",
    "empty": [(), {}, []],
    "state_dict": OrderedDict(
        float32=np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        scalar=np.array(3, np.int64),
        half=np.arange(3, dtype=np.float16),
        none=np.zeros((0, 5), np.float64),
        view=np.arange(6, dtype=np.int32).reshape(2, 3).T,
        big_endian=np.arange(3, dtype=">f4"),
        mask=np.array([True, False]),
    ),
}


def test_round_trip(tmp_path):
    write_torch_file(tmp_path / "x.pt", CONTENTS)
    found = read_torch_file(tmp_path / "x.pt")
    tensors = found.pop("state_dict")
    assert found == {key: value for key, value in CONTENTS.items() if key != "state_dict"}
    assert type(found["config"]["max_shape"]) is tuple and found["config"]["ve"] is True
    assert list(tensors) == list(CONTENTS["state_dict"])
    for name, expected in CONTENTS["state_dict"].items():
        np.testing.assert_array_equal(tensors[name], expected)
        assert tensors[name].shape == expected.shape
        assert tensors[name].dtype == expected.dtype.newbyteorder("<")


def test_layout_of_the_file(tmp_path):
    write_torch_file(tmp_path / "x.pt", {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
        names = ("data.pkl", "byteorder", "version", "data/0")
        assert set(entries) == {f"archive/{name}" for name in names}
        assert archive.read("archive/data/0") == np.arange(6, dtype="<f4").tobytes()
        operations = list(pickletools.genops(archive.read("archive/data.pkl")))
    # Without PyTorch: the names that its restricted unpickler knows, and no other.
    names = {argument for operation, argument, _ in operations if operation.name == "GLOBAL"}
    assert names == {
        "torch FloatStorage",
        "torch._utils _rebuild_tensor_v2",
        "collections OrderedDict",
    }
    numbers = [argument for operation, argument, _ in operations if operation.name == "LONG1"]
    # Elements of the storage, offset, shape, strides.
    assert numbers == [6, 0, 2, 3, 3, 1]


def test_same_contents_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_torch_file(tmp_path / name, CONTENTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "contents hold <object"),
        ({"x": {1, 2}}, r"contents hold \{1, 2\}, expected containers"),
        (np.zeros(2, np.complex64), "an array of complex64, expected one of float64, float32"),
    ],
)
def test_other_contents_are_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        write_torch_file(tmp_path / "x.pt", value)
    assert list(tmp_path.iterdir()) == []
