"""Images that are given as arrays: already normalised, (B, S, S, C) float32.

In: a `.npy` file of images, or a `.npz` file with `images` and `labels`. Out: checked arrays.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ghn_jax.configuration.validation import shorten
from ghn_jax.data import ArraySplit, Dataset
from ghn_jax.data.array_files import read_arrays


def read_images(path: str | os.PathLike[str], num_channels: int = 3) -> np.ndarray:
    """Read images for a forward pass.

    Args:
        path: a `.npy` file, (B, S, S, C) float32, already normalised.
        num_channels: C.

    Returns:
        The images.

    Raises:
        ValueError: if the file cannot be read, or its shape, dtype or order of axes is another.
    """
    images = _load(path)
    if not isinstance(images, np.ndarray):
        raise ValueError(f"{path} holds several arrays, expected a .npy file of one, the images")
    return check_images(str(path), images, num_channels)


def read_labelled_images(
    path: str | os.PathLike[str], image_size: int, num_classes: int, num_channels: int = 3
) -> Dataset:
    """Read images and labels for an evaluation.

    Args:
        path: a `.npz` file with `images`, (N, S, S, C) float32, already normalised, and `labels`,
            (N,) integers.
        image_size: S.
        num_classes: labels are less.
        num_channels: C.

    Returns:
        A data set all of whose splits are these images.

    Raises:
        ValueError: if the file cannot be read or does not hold just that.
    """
    arrays = _load(path)
    if not isinstance(arrays, dict) or set(arrays) != {"images", "labels"}:
        found = shorten(", ".join(arrays)) if isinstance(arrays, dict) else "a single array"
        raise ValueError(f"{path} holds {found}, expected a .npz file of 'images' and 'labels'")
    images = check_images(f"{path}: images", arrays["images"], num_channels, image_size)
    labels = arrays["labels"]
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: labels has shape {labels.shape} and dtype {labels.dtype}, expected"
            f" {len(images)} integers, one per image"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{path}: labels lie in {labels.min()}..{labels.max()}, expected 0..{num_classes - 1}:"
            f" the GHN is for {num_classes} classes"
        )
    split = ArraySplit(images, labels.astype(np.int32))
    return Dataset(
        name=str(path),
        num_classes=num_classes,
        image_size=image_size,
        num_channels=num_channels,
        # The images are normalised already.
        mean=(0.0,) * num_channels,
        std=(1.0,) * num_channels,
        train=split,
        validation=split,
        test=split,
        train_transform=lambda images, generator: np.asarray(images),
        eval_transform=np.asarray,
    )


def check_images(
    name: str, images: np.ndarray, num_channels: int, image_size: int | None = None
) -> np.ndarray:
    """Return images that are (B, S, S, C) float32, or raise ValueError saying what is wrong."""
    described = f"{name} has shape {images.shape} and dtype {images.dtype}"
    expected = f"expected (images, height, width, {num_channels}) float32, already normalised"
    if images.ndim != 4:
        raise ValueError(f"{described}, {expected}")
    if images.shape[3] != num_channels:
        hint = ""
        if images.shape[1] == num_channels:
            hint = ": it looks like NCHW, use images.transpose(0, 2, 3, 1)"
        raise ValueError(f"{described}, {expected}{hint}")
    if images.dtype != np.float32:
        raise ValueError(f"{described}, {expected}")
    if images.shape[1] != images.shape[2] or not images.size:
        raise ValueError(f"{described}, expected at least one image, as high as wide")
    if image_size is not None and images.shape[1] != image_size:
        raise ValueError(f"{described}, expected images of {image_size}x{image_size} pixels")
    if not np.isfinite(images).all():
        raise ValueError(f"{name} holds values that are not finite, expected numbers")
    return images


def _load(path: str | os.PathLike[str]) -> np.ndarray | dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise ValueError(f"{path} is not there, expected a file of images")
    return read_arrays(Path(path))
