"""Your own images from a .npz file.

In: a file with either `images` and `labels`, or `train_images`, `train_labels`, `test_images`,
`test_labels` and, optionally, `validation_images`, `validation_labels`. Out: an `ArraySplit` for
each of the three splits, checked. Also read where present: `num_classes` (a number; otherwise the
largest label plus one), and `mean` and `std` (one per channel, of images in [0, 1]; otherwise
computed from the training images).

Images are (N, H, W, C) with C 1 or 3, or (N, H, W) grey, with H = W; uint8 in [0, 255] or floating
in [0, 1]. Labels are (N,) integers from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import shorten
from ghn_jax.data.array_files import read_arrays
from ghn_jax.data.splits import ArraySplit, hold_out_last, split_at_random

SINGLE_KEYS = ("images", "labels")
SPLIT_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION_KEYS = ("validation_images", "validation_labels")
_KIND = "a .npz file of plain arrays (written by np.savez)"
OPTIONAL_KEYS = ("num_classes", "mean", "std")
_SMALLEST_STD = 1e-6  # images are divided by it


@dataclass(frozen=True, eq=False)
class ArrayParts:
    """What a file holds, after the checks.

    Attributes:
      splits: by name; always 'train', 'validation' and 'test'.
      num_classes: number of classes.
      mean: per channel (3), or None where the file has none.
      std: per channel (3), or None where the file has none.
    """

    splits: dict[str, ArraySplit]
    num_classes: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def read_npz(path: Path) -> ArrayParts:
    """Read and check a .npz file of images; the module's docstring says what it may hold.

    A file with only `images` is shuffled once, always the same way, and cut into 80 % training,
    10 % validation and 10 % test images. Without validation images, the last 10 % of the training
    images are taken.

    Args:
      path: the file.

    Returns:
      The checked arrays.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no .npz file, or an entry is missing, unknown or not as described.
    """
    arrays = _read_arrays(path)
    keys = set(arrays)
    if set(SINGLE_KEYS) <= keys:
        expected: tuple[str, ...] = SINGLE_KEYS + OPTIONAL_KEYS
    elif set(SPLIT_KEYS) <= keys:
        expected = SPLIT_KEYS + OPTIONAL_KEYS
        if keys & set(VALIDATION_KEYS):
            expected += VALIDATION_KEYS
    else:
        raise ValueError(
            f"{path} has the entries {shorten(', '.join(sorted(keys))) or 'none'}; expected"
            f" {' and '.join(SINGLE_KEYS)}, or {', '.join(SPLIT_KEYS)}"
            f" (and optionally {', '.join(VALIDATION_KEYS + OPTIONAL_KEYS)})"
        )
    if unknown := sorted(keys - set(expected)):
        raise ValueError(
            f"{path} has the unknown entries {shorten(', '.join(unknown))}; expected"
            f" {', '.join(expected)}"
        )
    given = {
        prefix: _checked_split(path, arrays, prefix)
        for prefix in ("", "train_", "validation_", "test_")
        if f"{prefix}images" in expected
    }
    image_sizes = {split.images.shape[1] for split in given.values()}
    if len(image_sizes) > 1:
        raise ValueError(f"{path} has images of sizes {sorted(image_sizes)}, expected one size")
    channels = {split.images.shape[3] for split in given.values()}
    # Colour in any split, or statistics of three channels, ask for three of grey images too.
    sizes = [np.size(arrays[key]) for key in ("mean", "std") if key in arrays]
    num_channels = 3 if 3 in (*channels, *sizes) else 1
    splits = {
        name: ArraySplit(
            np.broadcast_to(split.images, (*split.images.shape[:3], num_channels)), split.labels
        )
        for name, split in _complete_splits(given).items()
    }
    for name, split in splits.items():
        if not len(split):
            raise ValueError(f"{path} leaves the {name} split without images")
    return ArrayParts(
        splits=splits,
        num_classes=_checked_num_classes(path, arrays, given),
        mean=_checked_channels(path, arrays, "mean", num_channels),
        std=_checked_channels(path, arrays, "std", num_channels),
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a .npz file by name."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}, expected a .npz file of images and labels")
    arrays = read_arrays(path, _KIND)
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"{path} cannot be read as {_KIND}: it holds a single array")
    return arrays


def _checked_split(path: Path, arrays: Mapping[str, np.ndarray], prefix: str) -> ArraySplit:
    """Return the images and labels whose names start with the prefix, after the checks."""
    for key in (f"{prefix}images", f"{prefix}labels"):
        if key not in arrays:
            raise ValueError(f"{path} lacks the entry {key!r}")
    images = _checked_images(f"{path}: {prefix}images", arrays[f"{prefix}images"])
    labels = arrays[f"{prefix}labels"]
    name = f"{path}: {prefix}labels"
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name} has shape {labels.shape} and dtype {labels.dtype},"
            " expected integers of shape (N,)"
        )
    if len(labels) != len(images):
        raise ValueError(f"{name} has {len(labels)} entries for {len(images)} images")
    if not len(labels):
        raise ValueError(f"{name} is empty, expected at least one image")
    if labels.min() < 0:
        raise ValueError(f"{name} has the label {labels.min()}, expected labels from 0")
    if labels.max() >= limits.NUM_CLASSES:
        raise ValueError(
            f"{name} has the label {labels.max()}, expected labels below {limits.NUM_CLASSES}"
        )
    return ArraySplit(images, labels.astype(np.int32))


def _checked_images(name: str, images: np.ndarray) -> np.ndarray:
    """Return images as (N, H, W, C) uint8 or float32, or raise ValueError."""
    described = f"{name} has shape {images.shape} and dtype {images.dtype}"
    if images.ndim == 3:
        images = images[..., None]  # (N, H, W, 1)
    if images.ndim != 4:
        raise ValueError(f"{described}, expected (N, H, W, C) with C 1 or 3, or (N, H, W)")
    if images.shape[3] not in (1, 3):
        hint = ""
        if images.shape[1] in (1, 3):
            hint = "; it looks like (N, C, H, W): use images.transpose(0, 2, 3, 1)"
        raise ValueError(f"{described}, expected (N, H, W, C) with C 1 or 3{hint}")
    if images.shape[1] != images.shape[2] or not images.shape[1]:
        raise ValueError(f"{described}, expected square images")
    if np.issubdtype(images.dtype, np.floating):
        # NaN fails both comparisons.
        if not (np.all(images >= 0) and np.all(images <= 1)):
            raise ValueError(
                f"{name} has values in [{images.min()}, {images.max()}],"
                " expected [0, 1] for a floating dtype (uint8 holds [0, 255])"
            )
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise ValueError(f"{described}, expected uint8 or a floating dtype")
    return images


def _complete_splits(given: Mapping[str, ArraySplit]) -> dict[str, ArraySplit]:
    """Return training, validation and test splits from those a file gives, by prefix."""
    if "" in given:
        num_held_out = len(given[""]) // 10
        return split_at_random(given[""], num_held_out, num_held_out)
    if "validation_" in given:
        train, validation = given["train_"], given["validation_"]
    else:
        train, validation = hold_out_last(given["train_"])
    return {"train": train, "validation": validation, "test": given["test_"]}


def _checked_num_classes(
    path: Path, arrays: Mapping[str, np.ndarray], given: Mapping[str, ArraySplit]
) -> int:
    """Return the number of classes that the file names, or that its labels need."""
    largest_label = max(int(split.labels.max()) for split in given.values())
    if "num_classes" not in arrays:
        return largest_label + 1
    num_classes = arrays["num_classes"]
    if num_classes.shape != () or not np.issubdtype(num_classes.dtype, np.integer):
        raise ValueError(f"{path}: num_classes is {_show(num_classes)}, expected one integer")
    if num_classes > limits.NUM_CLASSES:
        raise ValueError(
            f"{path}: num_classes is {num_classes}, expected at most {limits.NUM_CLASSES}"
        )
    if largest_label >= num_classes:
        raise ValueError(
            f"{path} has the label {largest_label},"
            f" expected labels below num_classes = {int(num_classes)}"
        )
    return int(num_classes)


def _checked_channels(
    path: Path, arrays: Mapping[str, np.ndarray], key: str, num_channels: int
) -> tuple[float, ...] | None:
    """Return the file's mean or std as one float per channel, None where it has none."""
    if key not in arrays:
        return None
    values = np.atleast_1d(arrays[key])
    is_number = np.issubdtype(values.dtype, np.floating) and bool(np.all(np.isfinite(values)))
    if values.shape not in ((1,), (num_channels,)) or not is_number:
        sizes = "1 finite float" if num_channels == 1 else f"1 or {num_channels} finite floats"
        raise ValueError(f"{path}: {key} is {_show(arrays[key])}, expected {sizes}")
    if key == "std" and values.min() <= 0:
        raise ValueError(f"{path}: std is {_show(arrays[key])}, expected positive entries")
    if values.min() < _SMALLEST_STD * (key == "std") or values.max() > 1:
        least = _SMALLEST_STD if key == "std" else 0
        raise ValueError(
            f"{path}: {key} is {_show(arrays[key])}, expected entries in [{least}, 1] as of images"
            " in [0, 1]"
        )
    return tuple(float(value) for value in np.broadcast_to(values, (num_channels,)))


def _show(array: np.ndarray) -> str:
    return shorten(repr(array), 100)
