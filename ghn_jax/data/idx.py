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
import zlib
from pathlib import Path

import numpy as np

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
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}") from error
    magic = bytes((0, 0, UINT8_CODE, num_axes))
    num_header_bytes = 4 * (1 + num_axes)
    if content[:4] != magic or len(content) < num_header_bytes:
        raise ValueError(
            f"{path} starts with the bytes {content[:4].hex(' ')}, expected {magic.hex(' ')}: an"
            f" IDX file of uint8 with {num_axes} axes"
        )
    shape = tuple(np.frombuffer(content, ">i4", num_axes, offset=4).tolist())
    num_elements = len(content) - num_header_bytes
    if num_elements != math.prod(shape):
        raise ValueError(
            f"{path} has {num_elements} elements, expected {math.prod(shape)} for its shape {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=num_header_bytes).reshape(shape)


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
