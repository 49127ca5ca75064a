"""Read files that `torch.save` wrote, without PyTorch.

In: a zip archive with a pickle and one raw storage per tensor. Out: its contents, with tensors as
numpy arrays. A pickle can call anything; this reader resolves only the names that tensors and
ordered dicts need and refuses all others, so no code in a file runs.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "BoolStorage": np.dtype("?"),
}
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,  # encrypted
)


def read_torch_file(path: str | Path) -> Any:
    """Read a file that `torch.save` wrote; tensors become numpy arrays.

    Args:
        path: The file, a zip archive as PyTorch has written since 1.6.

    Returns:
        Its contents: containers, numbers, strings and arrays.

    Raises:
        ValueError: If the file is not such an archive, refers to globals other than those of
            tensors and ordered dicts, or has a tensor that extends beyond its storage.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError(f"it has {len(pickles)} entries data.pkl, expected 1")
            for entry in archive.infolist():
                # PyTorch compresses nothing, and a compressed entry could expand to any size.
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{entry.filename} is compressed, expected uncompressed")
            root = pickles[0].removesuffix("data.pkl")
            if root + "byteorder" in archive.namelist():
                order = archive.read(root + "byteorder").decode("ascii", "replace")
                if order != "little":
                    raise ValueError(f"byteorder is {order!r}, expected 'little'")
            data = io.BytesIO(archive.read(pickles[0]))
            return _TensorUnpickler(data, archive, root).load()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a zip archive ({error}), expected a PyTorch file"
        ) from error
    except (ValueError, *_PICKLE_ERRORS) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


class _StorageType(NamedTuple):
    dtype: np.dtype


class _TensorUnpickler(pickle.Unpickler):
    """Reads tensors, ordered dicts and plain containers, and nothing else.

    `torch.load(weights_only=True)` accepts the same names. This reader works without PyTorch, two
    gigabytes for which a JAX environment has no other use.
    """

    def __init__(self, data: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(data)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time, since a pickle may set attributes on what it is given.
            return lambda *args: _rebuild_tensor(*args)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, requires_grad, hooks: tensor
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        raise ValueError(
            f"file refers to {module}.{name}, expected only tensors, numbers and containers"
        )

    def persistent_load(self, reference: Any) -> np.ndarray:
        kind, storage_type, key, _, _ = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ValueError(f"file refers to {reference!r}, expected a tensor's storage")
        data = self._archive.read(f"{self._root}data/{key}")
        return np.frombuffer(data, storage_type.dtype)


def _rebuild_tensor(
    storage: np.ndarray,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    hooks: object,
    metadata: object = None,
) -> np.ndarray:
    del requires_grad, hooks, metadata
    if min((offset, *shape, *strides), default=0) < 0:
        raise ValueError(f"tensor has offset {offset}, shape {shape}, strides {strides}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.size:
        raise ValueError(
            f"tensor of shape {shape} has more elements than the {storage.size} of its storage"
        )
    if math.prod(shape) and last >= storage.size:
        raise ValueError(
            f"tensor of shape {shape} ends at element {last}, expected less than the"
            f" {storage.size} of its storage"
        )
    steps = [step * storage.itemsize for step in strides]
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
    return view.copy()
