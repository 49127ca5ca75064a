"""numpy's files: read as numpy reads them, in memory bounded by their size."""

import io
import re
import tracemalloc
import zipfile

import numpy as np
import pytest

from ghn_jax.data.array_files import read_arrays

ARRAYS = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "labels": np.array([1, -2]),
    "mean": np.float32(0.5),
    "order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 3)),
}


def npy(header, contents=b""):
    """The bytes of a file of version 1.0 with any text as its header."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + contents


def describe(shape, dtype="<f4"):
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_are_read_as_numpy_reads_them(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    found = read_arrays(tmp_path / "x.npz")
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
    found["images"][0] = 7  # an array of its own


def test_a_single_array_is_read(tmp_path):
    np.save(tmp_path / "x.npy", ARRAYS["images"])
    np.testing.assert_array_equal(read_arrays(tmp_path / "x.npy"), ARRAYS["images"])


HEADERS = {
    "more elements than memory": (describe((2**40, 2**20)), "declares shape .*, expected those"),
    "more than any number": (describe((2**62, 2**62)), "declares shape .*, expected those of the"),
    "negative": (describe((-1,)), r"has shape \(-1,\)"),
    "fewer": (describe((1,)), "expected those of the 8 bytes that follow"),
    "no bytes each": (describe((2**60,), "|V0"), "declares shape .*, expected those of the 8"),
    "objects": (describe((1,), "|O"), "holds objects, expected numbers"),
    "parentheses": ("(" * 3000, "cannot be read as plain numpy arrays: "),
    "more parentheses": ("(" * 9000, "cannot be read as plain numpy arrays: "),
    "minus signs": ("-" * 9000 + "1", "cannot be read as plain numpy arrays: "),
    "code": ("__import__('os').system('false')", "cannot be read as plain numpy arrays: "),
    "nothing": ("", "cannot be read as plain numpy arrays: "),
    "long": (" " * 20_000, "cannot be read as plain numpy arrays: "),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_any_text(tmp_path, case, inside):
    header, message = HEADERS[case]
    path = tmp_path / ("x.npz" if inside else "x.npy")
    contents = npy(header, bytes(8))
    if inside:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", contents)
    else:
        path.write_bytes(contents)
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        read_arrays(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    text = str(error.value)
    assert text.startswith(f"{path} cannot be read as plain numpy arrays: "), text
    assert re.search(message, text) and "\n" not in text and len(text) < 1200
    assert ("images.npy: " in text) == inside
    assert peak < 10**7


def test_archives_expand_to_a_limit(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=np.zeros(2**28 - 1000, np.uint8))  # in 0.3 MB
    assert read_arrays(path)["images"].size == 2**28 - 1000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(5):
            archive.writestr(f"{index}.npy", bytes(2**26))
    tracemalloc.start()
    with pytest.raises(ValueError, match="x.npz cannot be .* expands to 335544320 bytes, expected"):
        read_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_archives_of_other_things_are_refused(tmp_path):
    path, buffer = tmp_path / "x.npz", io.BytesIO()
    np.save(buffer, np.zeros(3))
    for name, compression, message in (
        ("x.txt", zipfile.ZIP_STORED, r"holds 'x.txt', expected arrays \(.npy\)"),
        ("x.npy", zipfile.ZIP_LZMA, "'x.npy' is compressed, expected as np.savez does"),
    ):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr(name, buffer.getvalue())
        with pytest.raises(
            ValueError, match=rf"x.npz cannot be read as .*: {message}|it {message}"
        ):
            read_arrays(path)


def test_damaged_values_are_noticed(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros(1000, np.uint8))
    contents = bytearray((tmp_path / "x.npz").read_bytes())
    contents[600] ^= 1
    (tmp_path / "x.npz").write_bytes(contents)
    with pytest.raises(ValueError, match=r"images\.npy: Bad CRC-32"):
        read_arrays(tmp_path / "x.npz")
