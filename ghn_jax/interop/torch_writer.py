"""Write files that `torch.load` reads, without PyTorch.

In: containers, numbers, strings and numpy arrays. Out: a zip archive with a pickle and one raw
storage per array, as `torch.save` writes. Python's pickler would have to import torch to name its
functions, so the few opcodes needed are written here; `torch.load(weights_only=True)` accepts all
of them.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "bool": "BoolStorage",
}
_ROOT = "archive"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of every entry, so that equal contents give equal bytes


def write_torch_file(path: str | Path, contents: Any) -> None:
    """Write a file that PyTorch reads with `torch.load(path)`; a reader never sees half a file.

    Args:
        path: The file to write; an existing file is replaced.
        contents: Dictionaries, lists, tuples, strings, numbers, None and arrays, which become
            tensors.

    Raises:
        ValueError: If the contents hold anything else.
    """
    storages: list[np.ndarray] = []
    data = b"\x80\x02" + b"".join(_encode(contents, storages)) + b"."
    temporary = Path(f"{path}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            entries = [("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n")]
            entries += [(f"data/{key}", array.tobytes()) for key, array in enumerate(storages)]
            for name, content in entries:
                archive.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}", _EPOCH), content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode(value: Any, storages: list[np.ndarray]) -> Iterable[bytes]:
    """Yield the opcodes (pickle protocol 2) that push a value onto the stack."""
    if isinstance(value, Mapping):
        yield b"}("
        for key, item in value.items():
            yield from _encode(key, storages)
            yield from _encode(item, storages)
        yield b"u"
    elif isinstance(value, (tuple, list)):
        yield b"(" if isinstance(value, tuple) else b"]("
        for item in value:
            yield from _encode(item, storages)
        yield b"t" if isinstance(value, tuple) else b"e"
    elif isinstance(value, np.ndarray):
        yield from _encode_array(value, storages)
    elif value is None or isinstance(value, bool):
        yield {None: b"N", True: b"\x88", False: b"\x89"}[value]
    elif isinstance(value, int):
        encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        yield b"\x8a" + struct.pack("<B", len(encoded)) + encoded
    elif isinstance(value, float):
        yield b"G" + struct.pack(">d", value)
    elif isinstance(value, str):
        encoded = value.encode("utf-8")
        yield b"X" + struct.pack("<I", len(encoded)) + encoded
    else:
        raise ValueError(
            f"contents hold {value!r}, expected containers, numbers, strings and arrays"
        )


def _encode_array(array: np.ndarray, storages: list[np.ndarray]) -> Iterable[bytes]:
    """Yield a call to torch's function that makes a tensor with a storage of its own."""
    if array.dtype.name not in _STORAGES:
        raise ValueError(
            f"contents hold an array of {array.dtype}, expected one of {', '.join(_STORAGES)}"
        )
    storages.append(array.astype(array.dtype.newbyteorder("<"), "C", copy=False))
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    yield b"ctorch._utils\n_rebuild_tensor_v2\n("
    yield b"("
    yield from _encode("storage", storages)
    yield f"ctorch\n{_STORAGES[array.dtype.name]}\n".encode()
    for part in (str(len(storages) - 1), "cpu", array.size):
        yield from _encode(part, storages)
    yield b"tQ"  # the storage, by its persistent id
    for argument in (0, array.shape, strides, False):
        yield from _encode(argument, storages)
    yield b"ccollections\nOrderedDict\n)R"  # no backward hooks
    yield b"tR"
