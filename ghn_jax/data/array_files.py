"""Read numpy's files, .npy and .npz, in bounded memory and without running anything in them.

In: a path. Out: the arrays, or one ValueError for everything that can be wrong with such a file. A
header of a hundred bytes can declare any number of elements, and a compressed entry expand to a
thousand times its size: both are compared with the file's size before anything is allocated.
"""

from __future__ import annotations

import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from ghn_jax.configuration.validation import describe_value, shorten

_LARGEST_EXPANSION = 32  # bytes of the arrays for each of the file; MNIST has 5
_ALWAYS_ALLOWED = 1 << 28  # bytes: images of one colour are small files
_ERRORS = (
    ValueError,
    OSError,  # without the file's name, of a place before its beginning
    EOFError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    RuntimeError,  # encrypted, or nested deeply
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
_MAGIC = b"\x93NUMPY"


def read_arrays(path: Path, kind: str = "plain numpy arrays") -> np.ndarray | dict[str, np.ndarray]:
    """Read a .npy or .npz file.

    Args:
        path: the file. Its arrays have at most 256 MB or, if that is more, 32 times the file's
            bytes.
        kind: what the file should be, for errors.

    Returns:
        The array of a .npy file; those of a .npz file by name.

    Raises:
        ValueError: if it is no such file, is damaged, has objects that would have to be unpickled,
            or would take more memory than stated.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            if file.read(len(_MAGIC)) != _MAGIC:
                return _read_archive(path)
            _check_header(file, path.stat().st_size)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except _ERRORS as error:
        reason = shorten(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as {kind}: {reason}") from error


def check_expansion(size: int, num_bytes: int) -> None:
    """Raise ValueError if a file of `size` bytes expands to more than a real one would."""
    most = max(_ALWAYS_ALLOWED, _LARGEST_EXPANSION * size)
    if num_bytes > most:
        raise ValueError(f"it expands to {num_bytes} bytes, expected at most {most}")


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.compress_size for entry in entries) > size:
            raise ValueError("its entries overlap")
        check_expansion(size, sum(entry.file_size for entry in entries))
        arrays = {}
        for entry in entries:
            name = entry.filename
            if not name.endswith(".npy"):
                raise ValueError(f"it holds {describe_value(name)}, expected arrays (.npy)")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{describe_value(name)} is compressed, expected as np.savez does")
            try:
                with archive.open(entry) as file:
                    file.read(len(_MAGIC))
                    _check_header(file, entry.file_size)
                with archive.open(entry) as file:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(
                        file, allow_pickle=False
                    )
            except _ERRORS as error:
                reason = shorten(error) or type(error).__name__
                raise ValueError(f"{shorten(name, 100)}: {reason}") from error
    return arrays


def _check_header(file: IO[bytes], size: int) -> None:
    """Raise ValueError unless the array that a header declares has the bytes that follow it."""
    version = tuple(file.read(2))
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"it has the format {version}, expected numpy's (1, 0) or (2, 0)")
    if dtype.hasobject:
        raise ValueError("it holds objects, expected numbers")
    num_bytes = dtype.itemsize
    for length in shape:
        if length < 0:
            raise ValueError(f"it has shape {describe_value(shape)}")
        num_bytes *= length
    if dtype.itemsize == 0 or num_bytes != size - file.tell():
        raise ValueError(
            f"it declares shape {describe_value(shape)} and dtype {shorten(dtype, 100)}, expected"
            f" those of the {size - file.tell()} bytes that follow"
        )
