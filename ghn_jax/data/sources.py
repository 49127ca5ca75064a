"""The data sets that come with the package; each registers itself.

In: a name, and where prepared files lie. Out: a `Dataset`.

| name | training / validation / test images | size |
|---|---|---|
| `digits` | 1257 / 180 / 360 (scikit-learn's, from its package) | 8, grey |
| `cifar10`, `cifar100` | 45000 / 5000 / 10000 | 32 |
| `fashion_mnist` | 54000 / 6000 / 10000 | 28, grey |
| `imagenet2012` | 1231167 / 50000 / 50000 | 224 |
| `npz:<path>` | one's own, see `ghn_jax.data.npz` | the file's |
| `idx:<folder>` | MNIST's four files, see `ghn_jax.data.idx` | the files', grey |

Validation images are the last 10 % of the published training images, in the order they were
published in. For ImageNet they are the last 50 000 training records of the prepared (shuffled)
files, and its published validation images are the test images, as in Knyazev et al. 2021, who hold
out 50 images of each class.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghn_jax.configuration.validation import check_positive_int
from ghn_jax.data.augmentation import CenterCrop, CropAndFlip, RandomResizedCrop, Resize
from ghn_jax.data.idx import read_idx_folder
from ghn_jax.data.npz import read_npz
from ghn_jax.data.registry import DATASETS, Folder, register_dataset
from ghn_jax.data.splits import (
    ArraySplit,
    Dataset,
    RecordSplit,
    hold_out_last,
    repeat_channel,
    split_at_random,
)
from ghn_jax.extras import extra

NUM_RECORDS_PER_READ = 1000

# Published ImageNet: 50 of about 1281 training images per class are held out.
IMAGENET_NUM_TRAIN, IMAGENET_NUM_HELD_OUT = 1_281_167, 50_000


@dataclass(frozen=True)
class PublishedSet:
    """What is known of a data set read through tfds.

    Attributes:
      num_classes: number of classes.
      image_size: height and width a network reads by default, in pixels.
      mean: means of the training images' channels in [0, 1].
      std: standard deviations of the training images' channels in [0, 1].
    """

    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


# CIFAR-10's and ImageNet's statistics are those Knyazev et al. 2021 normalise with; the other
# two are the usual ones of their training images.
PUBLISHED_SETS = {
    "cifar10": PublishedSet(
        num_classes=10,
        image_size=32,
        mean=(0.49139968, 0.48215827, 0.44653124),
        std=(0.24703233, 0.24348505, 0.26158768),
    ),
    "cifar100": PublishedSet(
        num_classes=100,
        image_size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "fashion_mnist": PublishedSet(num_classes=10, image_size=28, mean=(0.2860,), std=(0.3530,)),
    "imagenet2012": PublishedSet(
        num_classes=1000,
        image_size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}


def load_dataset(
    name: str,
    data_dir: Folder = None,
    image_size: int | None = None,
    num_channels: int = 3,
) -> Dataset:
    """Load a data set by name.

    `digits` needs nothing but scikit-learn; it and one's own files are not augmented. The sets read
    through tfds are never downloaded from here: an error names the command that prepares them.

    Args:
      name: 'digits', 'cifar10', 'cifar100', 'fashion_mnist', 'imagenet2012', 'npz:<path>',
        'idx:<folder>', or one registered by `ghn_jax.register_dataset`.
      data_dir: the folder of tfds's prepared sets (None: $TFDS_DATA_DIR or ~/tensorflow_datasets),
        or what the path of an npz file or idx folder is relative to (None: the current folder).
      image_size: height and width of the images a network reads, in pixels; images of another size
        are resized as they are read. None takes the set's own size.
      num_channels: channels of the images a network reads; that of grey images is repeated.

    Returns:
      The data set.

    Raises:
      ValueError: if the name is unknown or an argument or file is not as expected.
      FileNotFoundError: if the set or file is not on disk.
    """
    if image_size is not None:
        check_positive_int("image_size", image_size)
    check_positive_int("num_channels", num_channels)
    return repeat_channel(DATASETS.load(name, data_dir, image_size), num_channels)


@register_dataset("digits")
def _load_digits(data_dir: Folder, image_size: int | None) -> Dataset:
    """Return scikit-learn's 8x8 digits: 1797 grey images whose pixels 0..16 become 0..1."""
    del data_dir  # they come with scikit-learn
    # Imported here since it takes a second that the other data sets need not wait for.
    with extra("train", "scikit-learn's digits"):
        from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]  # (N, 8, 8, 1)
    labels = digits.target.astype(np.int32)
    splits = split_at_random(ArraySplit(images, labels), num_validation=180, num_test=360)
    return dataset_from_arrays("digits", splits, 10, image_size)


@register_dataset("npz:")
def _load_npz(location: str, data_dir: Folder, image_size: int | None) -> Dataset:
    """Return the data set of one's own arrays; not augmented."""
    parts = read_npz(_own_path(location, data_dir))
    return dataset_from_arrays(
        f"npz:{location}", parts.splits, parts.num_classes, image_size, parts.mean, parts.std
    )


@register_dataset("idx:")
def _load_idx(location: str, data_dir: Folder, image_size: int | None) -> Dataset:
    """Return the data set of a folder of IDX files; not augmented."""
    splits = read_idx_folder(_own_path(location, data_dir))
    num_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    return dataset_from_arrays(f"idx:{location}", splits, num_classes, image_size)


def _own_path(location: str, data_dir: Folder) -> Path:
    return Path(data_dir or ".") / Path(location).expanduser()


def dataset_from_arrays(
    name: str,
    splits: Mapping[str, ArraySplit],
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Dataset:
    """Make a data set of images in memory, without augmentation.

    Args:
      name: what it is called.
      splits: 'train', 'validation' and 'test', of square images of one size.
      num_classes: labels are 0 .. num_classes - 1; None where they are no classes.
      image_size: height and width to which images are resized as they are read; None keeps theirs.
      mean: channel means of images in [0, 1]; None takes those of the training images.
      std: channel standard deviations, likewise.

    Returns:
      The data set.
    """
    train_mean, train_std = channel_statistics(splits["train"].images)
    return Dataset(
        name=name,
        num_classes=num_classes,
        image_size=image_size or splits["train"].images.shape[1],
        num_channels=splits["train"].images.shape[3],
        mean=mean or train_mean,
        std=std or train_std,
        train_transform=CropAndFlip(padding=0, flip=False, image_size=image_size),
        eval_transform=Resize(image_size),
        **splits,
    )


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the means and standard deviations of the channels of images in [0, 1].

    Args:
      images: (N, H, W, C), uint8 in [0, 255] or float32 in [0, 1].

    Returns:
      (mean, std), C floats each; the std of a constant channel is given as 1, so that normalising
      leaves zeros.
    """
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    channels = [images[..., index] for index in range(images.shape[-1])]
    mean = tuple(float(channel.mean(dtype=np.float64)) / scale for channel in channels)
    std = tuple(float(channel.std(dtype=np.float64)) / scale or 1.0 for channel in channels)
    return mean, std


def _load_in_memory(name: str, data_dir: Folder, image_size: int | None) -> Dataset:
    """Return CIFAR or Fashion-MNIST, decoded once into memory (150 MB as uint8)."""
    published = PUBLISHED_SETS[name]
    train, validation = hold_out_last(_read_all(_open_records(name, "train", data_dir)))
    return Dataset(
        name=name,
        num_classes=published.num_classes,
        image_size=image_size or published.image_size,
        num_channels=len(published.mean),
        mean=published.mean,
        std=published.std,
        train=train,
        validation=validation,
        test=_read_all(_open_records(name, "test", data_dir)),
        train_transform=CropAndFlip(padding=4, image_size=image_size),
        eval_transform=Resize(image_size),
    )


# Named in errors as the function that they are.
for _name in ("cifar10", "cifar100", "fashion_mnist"):
    register_dataset(_name)(
        functools.update_wrapper(functools.partial(_load_in_memory, _name), _load_in_memory)
    )


def _read_all(records: Any) -> ArraySplit:
    """Decode all records into memory, in the order of publication where they carry an id."""
    num_records = len(records)
    image_parts, label_parts, ids = [], [], []
    for start in range(0, num_records, NUM_RECORDS_PER_READ):
        stop = min(start + NUM_RECORDS_PER_READ, num_records)
        examples = [records[index] for index in range(start, stop)]
        image_parts.append(np.stack([example["image"] for example in examples]))
        label_parts.append(np.array([example["label"] for example in examples], np.int32))
        ids += [example["id"] for example in examples if "id" in example]
    images, labels = np.concatenate(image_parts), np.concatenate(label_parts)
    if ids:
        # tfds shuffles as it prepares; CIFAR's ids, 'train_00000' and on, hold the original order,
        # which decides what the last 10 % and the test batches are.
        order = np.argsort(np.array(ids), kind="stable")
        images, labels = images[order], labels[order]
    return ArraySplit(images, labels)


@register_dataset("imagenet2012")
def _load_imagenet(data_dir: Folder, image_size: int | None) -> Dataset:
    """Return ImageNet, decoded image by image as it is read."""
    published = PUBLISHED_SETS["imagenet2012"]
    size = image_size or published.image_size

    def split_of(tfds_split: str, take: Callable[[int], slice]) -> RecordSplit:
        records = _open_records("imagenet2012", tfds_split, data_dir)

        def open_encoded() -> Any:
            return _open_records("imagenet2012", tfds_split, data_dir, decode_images=False)

        num_records = len(records)
        return RecordSplit(records, open_encoded, np.arange(num_records)[take(num_records)])

    return Dataset(
        name="imagenet2012",
        num_classes=published.num_classes,
        image_size=size,
        num_channels=len(published.mean),
        mean=published.mean,
        std=published.std,
        train=split_of("train", lambda total: slice(0, total - _num_held_out(total))),
        validation=split_of("train", lambda total: slice(total - _num_held_out(total), total)),
        test=split_of("validation", lambda total: slice(0, total)),
        train_transform=RandomResizedCrop(size),
        eval_transform=CenterCrop(size),
    )


def _num_held_out(num_records: int) -> int:
    """Return the number of ImageNet training records held out; in proportion for a smaller set."""
    return max(1, num_records * IMAGENET_NUM_HELD_OUT // IMAGENET_NUM_TRAIN)


def _open_records(
    name: str,
    tfds_split: str,
    data_dir: Folder,
    decode_images: bool = True,
) -> Any:
    """Open one tfds split for random access, or say how to prepare it."""
    # Imported here since it takes seconds, and digits and one's own files do not need it.
    with extra("tfds", "data sets of TensorFlow Datasets"):
        import tensorflow_datasets as tfds

    folder = None if data_dir is None else os.path.expanduser(os.fspath(data_dir))
    decoders = None if decode_images else {"image": tfds.decode.SkipDecoding()}
    try:
        # array_record is the format with random access that needs no TensorFlow to read.
        return tfds.data_source(
            name,
            split=tfds_split,
            data_dir=folder,
            download=False,
            decoders=decoders,
            builder_kwargs={"file_format": "array_record"},
        )
    except (NotImplementedError, AssertionError, KeyError, ValueError, FileNotFoundError) as error:
        # Depending on what lies in the folder, tfds raises any of these for a set not prepared.
        looked_in = folder or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        manual = (
            " (after putting ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which"
            f" image-net.org gives to registered users, into {looked_in}/downloads/manual)"
            if name == "imagenet2012"
            else ""
        )
        raise FileNotFoundError(
            f"data set {name!r} is not prepared in array_record format under {looked_in}; prepare"
            f" it with `tfds build {name} --file_format=array_record --data_dir={looked_in}`"
            f"{manual}. Preparing needs TensorFlow, in any environment; reading does not."
            f" tfds said: {error}"
        ) from error
