"""Read files that `torch.save` wrote, without PyTorch.

In: a zip archive with a pickle and one raw storage per tensor. Out: its contents, with tensors as
numpy arrays. A pickle can call anything; this reader resolves only the names that tensors and
ordered dicts need and refuses all others, so no code in a file runs.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ghn_jax.configuration.validation import describe_value, shorten

_DTYPES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "BoolStorage": np.dtype("?"),
}
_LARGEST_PICKLE = 4 << 20  # bytes; that of a GHN with 1,000 tensors has 0.1 MB
_DEEPEST = 100  # containers within each other
_MOST_AXES = 32
_MOST_SHARED = 4  # bytes of all tensors for each byte of the file, since tensors may share storages
_ERRORS = (
    ValueError,
    OSError,  # without the file's name, of a place before its beginning
    pickle.UnpicklingError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,  # encrypted
    struct.error,
)


def read_torch_file(path: str | Path) -> Any:
    """Read a file that `torch.save` wrote; tensors become numpy arrays.

    Tensors take at most four times the bytes of the file, and the pickle has at most 4 MB.

    Args:
        path: The file, a zip archive as PyTorch has written since 1.6.

    Returns:
        Its contents: containers, numbers, strings and arrays.

    Raises:
        ValueError: If the file is not such an archive, refers to globals other than those of
            tensors and ordered dicts, has a tensor that extends beyond its storage, or would take
            more memory than stated.
    """
    try:
        size = Path(path).stat().st_size
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError(f"it has {len(pickles)} entries data.pkl, expected 1")
            _check_entries(archive, size)
            root = pickles[0].removesuffix("data.pkl")
            if root + "byteorder" in archive.namelist():
                order = archive.read(root + "byteorder").decode("ascii", "replace")
                if order != "little":
                    raise ValueError(f"byteorder is {describe_value(order)}, expected 'little'")
            if archive.getinfo(pickles[0]).file_size > _LARGEST_PICKLE:
                raise ValueError(
                    f"data.pkl has {archive.getinfo(pickles[0]).file_size} bytes, expected at most"
                    f" {_LARGEST_PICKLE}"
                )
            data = archive.read(pickles[0])
            _check_pickle(data)
            return _TensorUnpickler(io.BytesIO(data), archive, root, _MOST_SHARED * size).load()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a zip archive ({shorten(error)}), expected a PyTorch file"
        ) from error
    except _ERRORS as error:
        raise ValueError(
            f"{path} cannot be read: {shorten(error) or type(error).__name__}"
        ) from error


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError unless the entries are stored as they are, each in a place of its own."""
    for entry in archive.infolist():
        # PyTorch compresses nothing, and a compressed entry could expand to any size.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{shorten(entry.filename, 100)} is compressed, expected uncompressed")
    total = sum(entry.file_size for entry in archive.infolist())
    if total > size:
        raise ValueError(f"its entries have {total} bytes together, expected at most its {size}")


def _check_pickle(data: bytes) -> None:
    """Raise ValueError if reading a pickle would take much memory, or nests containers deeply.

    Python's own reader follows any number: one opcode of five bytes makes it reserve 32 GB.
    """
    stack: list[Any] = []  # the depth of each value, or the mark
    memo: dict[int, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name == "MARK":
            stack.append(pickletools.markobject)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if argument is None else argument
            if not 0 <= place <= len(data):
                raise ValueError(f"it numbers a value {place}, expected at most {len(data)}")
            memo[place] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "STOP":
            return
        elif name == "POP":
            stack.pop()
        else:
            _apply(opcode, stack)


def _apply(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    """Do to the depths on the stack what an opcode does to the values."""
    taken: list[Any] = []
    number = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        while stack[-1] is not pickletools.markobject:
            taken.append(stack.pop())
        stack.pop()
        number = opcode.stack_before.index(pickletools.markobject)
    taken += [stack.pop() for _ in range(number)]
    if opcode.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
        # The container, which was taken last, is put back.
        depth = max([taken[-1], *(1 + inner for inner in taken[:-1])])
    else:
        depth = 1 + max(taken, default=0)
    if depth > _DEEPEST:
        raise ValueError(f"it nests containers more than {_DEEPEST} deep")
    stack += [depth] * len(opcode.stack_after)


class _StorageType(NamedTuple):
    dtype: np.dtype


class _TensorUnpickler(pickle.Unpickler):
    """Reads tensors, ordered dicts and plain containers, and nothing else.

    `torch.load(weights_only=True)` accepts the same names. This reader works without PyTorch, two
    gigabytes for which a JAX environment has no other use.
    """

    def __init__(
        self, data: io.BytesIO, archive: zipfile.ZipFile, root: str, num_bytes_left: int
    ) -> None:
        super().__init__(data)
        self._archive, self._root = archive, root
        self._num_bytes_left = num_bytes_left
        self._storages: dict[tuple[str, np.dtype], np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        # A new function each time, since a pickle may set attributes on what it is given. None of
        # them copies a container: a few bytes of a pickle would copy a large one, again and again.
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: OrderedDict()
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: self._rebuild_tensor(*args)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, requires_grad, hooks: tensor
        if (module, name) == ("torch", "Size"):
            return lambda sizes: _check_sizes("size", sizes)
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        raise ValueError(
            f"file refers to {shorten(module, 100)}.{shorten(name, 100)}, expected only tensors,"
            " numbers and containers"
        )

    def persistent_load(self, reference: Any) -> np.ndarray:
        is_storage = isinstance(reference, tuple) and len(reference) == 5
        if not is_storage or reference[0] != "storage":
            raise ValueError(f"file refers to {describe_value(reference)}, expected a storage")
        _, storage_type, key, _, _ = reference
        if not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise ValueError(f"file refers to {describe_value(reference)}, expected a storage")
        place = (key, storage_type.dtype)
        if place not in self._storages:
            data = self._archive.read(f"{self._root}data/{key}")
            self._storages[place] = np.frombuffer(data, storage_type.dtype)
        return self._storages[place]

    def _rebuild_tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: bool,
        hooks: object,
        metadata: object = None,
    ) -> np.ndarray:
        del requires_grad, hooks, metadata
        if not isinstance(storage, np.ndarray):
            raise ValueError(f"tensor has the storage {describe_value(storage)}")
        (offset,) = _check_sizes("offset", (offset,))
        shape, strides = _check_sizes("shape", shape), _check_sizes("strides", strides)
        num_elements = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if num_elements > storage.size:
            raise ValueError(
                f"tensor of shape {shape} has more elements than the {storage.size} of its storage"
            )
        if num_elements and last >= storage.size:
            raise ValueError(
                f"tensor of shape {shape} ends at element {last}, expected less than the"
                f" {storage.size} of its storage"
            )
        self._num_bytes_left -= num_elements * storage.itemsize
        if self._num_bytes_left < 0:
            raise ValueError(
                f"its tensors share storages and have more than {_MOST_SHARED} times the file's"
                " bytes together"
            )
        steps = [step * storage.itemsize for step in strides]
        view = np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
        return view.copy()


def _check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """Return a tensor's shape or strides, or raise ValueError."""
    is_short = isinstance(sizes, tuple | list) and len(sizes) <= _MOST_AXES
    if not is_short or any(type(size) is not int or not 0 <= size < 2**62 for size in sizes):
        raise ValueError(
            f"tensor has {name} {describe_value(sizes)}, expected at most {_MOST_AXES} ints from 0"
        )
    return tuple(sizes)
