"""A data set and its parts.

A `Split` answers which images and labels stand at given positions: from arrays in memory
(`ArraySplit`) or from records decoded when they are asked for (`RecordSplit`). A `Dataset` is three
splits and what the images need before a network reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ghn_jax.configuration.validation import check_choice, check_positive_int
from ghn_jax.data.augmentation import Images

SPLIT_NAMES = ("train", "validation", "test")


class Split(Protocol):
    """Images and labels at positions 0 .. len - 1."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, indices: np.ndarray) -> tuple[Images, np.ndarray]:
        """Return the images and the labels (B, ...) at the positions (B,), in that order."""

    def labels_at(self, indices: np.ndarray) -> np.ndarray:
        """Return the labels (B, ...) at the positions (B,) without decoding images."""

    def subset(self, indices: np.ndarray) -> Split:
        """Return the split of the given positions (B,), in that order."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split that lies in memory.

    Attributes:
      images: (N, H, W, C), uint8 in [0, 255] or float32 in [0, 1].
      labels: (N,) int32 classes; or (N, ...) whatever the task's loss reads, int32 or float32.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"labels has {len(self.labels)} rows, expected the {len(self.images)} of images"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return images (B, H, W, C) and labels (B, ...) at the positions (B,)."""
        # Replicated grey images are views with a zero stride, so a contiguous copy is asked for.
        return np.ascontiguousarray(self.images[indices]), self.labels[indices]

    def labels_at(self, indices: np.ndarray) -> np.ndarray:
        """Return the labels (B, ...) at the positions (B,)."""
        return self.labels[indices]

    def subset(self, indices: np.ndarray) -> ArraySplit:
        """Return the split of the given positions (B,), in that order."""
        return ArraySplit(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class RecordSplit:
    """A split whose images stay on disk, encoded, until they are read.

    Attributes:
      records: decoded examples {"image": (h, w, 3) uint8, "label": int, ...} by position
        (a `tfds.data_source`).
      encoded_records: opens the same examples with their images left encoded, for their labels.
      indices: (N,) int64 positions in the records that make up this split.
    """

    records: Any
    encoded_records: Callable[[], Any]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return images [(h, w, 3) uint8] of any sizes and labels (B,) int32."""
        examples = [self.records[index] for index in self.indices[indices].tolist()]
        return [example["image"] for example in examples], _labels_of(examples)

    def labels_at(self, indices: np.ndarray) -> np.ndarray:
        """Return the labels (B,) int32 at the positions (B,); reads the records, decodes none."""
        encoded = self.encoded_records()
        return _labels_of([encoded[index] for index in self.indices[indices].tolist()])

    def subset(self, indices: np.ndarray) -> RecordSplit:
        """Return the split of the given positions (B,), in that order."""
        return RecordSplit(self.records, self.encoded_records, self.indices[indices])


def split_at_random(split: ArraySplit, num_validation: int, num_test: int) -> dict[str, ArraySplit]:
    """Cut images into training, validation and test images by one fixed permutation.

    Args:
      split: the N images to cut.
      num_validation: number of validation images.
      num_test: number of test images; the remaining ones are for training.

    Returns:
      The splits 'train', 'validation' and 'test'; disjoint, and together all N images.
    """
    num_train = len(split) - num_validation - num_test
    # RandomState's stream is frozen for good, which Generator's is not: the split never changes.
    order = np.random.RandomState(0).permutation(len(split))  # noqa: NPY002
    return {
        "train": split.subset(order[:num_train]),
        "validation": split.subset(order[num_train : num_train + num_validation]),
        "test": split.subset(order[num_train + num_validation :]),
    }


def hold_out_last(split: ArraySplit) -> tuple[ArraySplit, ArraySplit]:
    """Return the first images and the last 10 % (rounded down) of a split, without copying."""
    num_train = len(split) - len(split) // 10
    return (
        ArraySplit(split.images[:num_train], split.labels[:num_train]),
        ArraySplit(split.images[num_train:], split.labels[num_train:]),
    )


def take_shots(dataset: Dataset, num_shots: int) -> Dataset:
    """Keep the first images of each class to train on, as in the original's few-shot protocol.

    Args:
      dataset: validation and test images stay as they are.
      num_shots: number of training images of each class.

    Returns:
      The data set with `num_shots * num_classes` training images, in their order.

    Raises:
      ValueError: if a class has fewer training images, or labels are no classes.
    """
    check_positive_int("num_shots", num_shots)
    labels = dataset.train.labels_at(np.arange(len(dataset.train)))
    chosen = []
    for label in range(check_classes(dataset)):
        positions = np.flatnonzero(labels == label)
        if len(positions) < num_shots:
            raise ValueError(
                f"num_shots is {num_shots}, expected at most {len(positions)}: class {label} of"
                f" {dataset.name!r} has no more training images"
            )
        chosen.append(positions[:num_shots])
    return replace(dataset, train=dataset.train.subset(np.sort(np.concatenate(chosen))))


def check_classes(dataset: Dataset) -> int:
    """Return the number of classes; ValueError if the labels are none."""
    if dataset.num_classes is None:
        raise ValueError(f"num_classes of the data set {dataset.name!r} is None, expected classes")
    return dataset.num_classes


def _labels_of(examples: Sequence[Any]) -> np.ndarray:
    """Return the labels (B,) int32 of decoded examples."""
    return np.array([example["label"] for example in examples], np.int32)


def repeat_channel(dataset: Dataset, num_channels: int) -> Dataset:
    """Give a network more channels than grey images have: all the same.

    Args:
      dataset: of grey images in memory, or of images with `num_channels` channels already.
      num_channels: number of channels C that the network reads.

    Returns:
      The data set, its images views of what they were.

    Raises:
      ValueError: if the images have another number of channels, or are grey but not in memory.
    """
    if dataset.num_channels == num_channels:
        return dataset
    if dataset.num_channels != 1:
        raise ValueError(
            f"num_channels is {num_channels}, expected {dataset.num_channels} for the data set"
            f" {dataset.name!r}"
        )

    def repeat(split: Split) -> Split:
        if not isinstance(split, ArraySplit):
            raise ValueError(
                f"num_channels is {num_channels}, expected 1 for the data set {dataset.name!r}:"
                " its images do not lie in memory"
            )
        shape = (*split.images.shape[:-1], num_channels)
        return ArraySplit(np.broadcast_to(split.images, shape), split.labels)

    return replace(
        dataset,
        num_channels=num_channels,
        mean=dataset.mean * num_channels,
        std=dataset.std * num_channels,
        train=repeat(dataset.train),
        validation=repeat(dataset.validation),
        test=repeat(dataset.test),
    )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits, and what their images need before a network reads them.

    Attributes:
      name: as given to `load_dataset`.
      num_classes: labels are 0 .. num_classes - 1; None where they are no classes.
      image_size: height and width of the images a network reads, in pixels.
      num_channels: number of channels C of the images a network reads.
      mean: channel means of images in [0, 1].
      std: channel standard deviations of images in [0, 1].
      train: images to train on.
      validation: held out from the published training images, unless the source has its own.
      test: images to report accuracy on.
      train_transform: (images, generator) -> (B, image_size, image_size, C), augmented.
      eval_transform: images -> (B, image_size, image_size, C), without randomness.
    """

    name: str
    num_classes: int | None
    image_size: int
    num_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split
    train_transform: Callable[[Images, np.random.Generator], np.ndarray]
    eval_transform: Callable[[Images], np.ndarray]

    def split(self, name: str) -> Split:
        """Return the split called 'train', 'validation' or 'test'.

        Raises:
          ValueError: if there is no such split.
        """
        check_choice("split", name, SPLIT_NAMES)
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]
