"""Images in the IDX format of MNIST and its successors.

In: a folder with the four published files, `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
`t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each plain or with `.gz`. Out: an
`ArraySplit` for each of the three splits, checked; the validation images are the last 10 % of the
training ones.

The format, as the page of MNIST describes it (yann.lecun.com/exdb/mnist): two zero bytes, one byte
for the type of the elements (8 is uint8, the only one used here), one for the number of axes, the
size of each axis as a big-endian int32, then the elements in C order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

from ghn_jax.configuration.validation import shorten
from ghn_jax.data.array_files import check_expansion
from ghn_jax.data.splits import ArraySplit, hold_out_last

FILE_PREFIXES = {"train": "train", "test": "t10k"}
UINT8_CODE = 8


def read_idx_folder(folder: Path) -> dict[str, ArraySplit]:
    """Read and check the four files of a data set in the IDX format.

    Args:
      folder: where the files lie.

    Returns:
      The splits 'train', 'validation' and 'test'; images (N, H, W, 1) uint8, labels (N,) int32.

    Raises:
      FileNotFoundError: if the folder or one of the files is missing.
      ValueError: if a file is damaged, or images and labels do not belong together.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}, expected one with MNIST's four IDX files")
    given = {split: _read_split(folder, prefix) for split, prefix in FILE_PREFIXES.items()}
    sizes = {name: split.images.shape[1:3] for name, split in given.items()}
    if sizes["train"] != sizes["test"]:
        raise ValueError(f"{folder} has images of sizes {sizes}, expected one size")
    train, validation = hold_out_last(given["train"])
    return {"train": train, "validation": validation, "test": given["test"]}


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Read one file, plain or compressed with gzip.

    Args:
      path: the file; a name that ends in .gz is decompressed.
      num_axes: the number of axes the array has to have.

    Returns:
      uint8 array.

    Raises:
      ValueError: if the file is not a whole IDX file of uint8 with that many axes.
    """
    is_compressed = path.suffix == ".gz"
    try:
        with gzip.open(path) if is_compressed else path.open("rb") as file:
            shape = _read_shape(path, cast(IO[bytes], file), num_axes)
            num_elements = math.prod(shape)
            size = path.stat().st_size
            if is_compressed:
                check_expansion(size, num_elements)
            elif num_elements > size:
                raise ValueError(f"it has {size} bytes, too few for its shape {shape}")
            content = file.read(num_elements)
            if len(content) < num_elements or file.read(1):
                found = len(content) if len(content) < num_elements else "more"
                raise ValueError(
                    f"it has {found} elements, expected {num_elements} for its shape {shape}"
                )
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} cannot be decompressed: {shorten(error)}") from error
    except (ValueError, MemoryError) as error:
        raise ValueError(f"{path}: {shorten(error) or 'it does not fit into memory'}") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_shape(path: Path, file: IO[bytes], num_axes: int) -> tuple[int, ...]:
    """Return the sizes in a file's header."""
    magic = bytes((0, 0, UINT8_CODE, num_axes))
    num_header_bytes = 4 * (1 + num_axes)
    header = file.read(num_header_bytes)
    if header[:4] != magic or len(header) < num_header_bytes:
        raise ValueError(
            f"it starts with the bytes {header[:4].hex(' ')}, expected {magic.hex(' ')}: an IDX"
            f" file of uint8 with {num_axes} axes"
        )
    shape = tuple(np.frombuffer(header, ">i4", num_axes, offset=4).tolist())
    if min(shape) < 0:
        raise ValueError(f"it has the sizes {shape}, expected sizes from 0")
    return shape


def _read_split(folder: Path, prefix: str) -> ArraySplit:
    """Return the images and labels of the two files whose names start with the prefix."""
    images_path = _existing(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _existing(folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    num_images, height, width = images.shape
    if height != width or not images.size:
        raise ValueError(f"{images_path} has shape {images.shape}, expected square images")
    if len(labels) != num_images:
        raise ValueError(f"{labels_path} has {len(labels)} labels for {num_images} images")
    return ArraySplit(images[..., None], labels.astype(np.int32))


def _existing(folder: Path, name: str) -> Path:
    """Return the path of a file, plain or with .gz."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise FileNotFoundError(f"{folder} lacks {name} (or {name}.gz); it holds {found}")
