"""Data sets: sizes, disjointness, statistics, what is accepted, and the texts of the errors."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ghn_jax
from ghn_jax.data import TrainBatches, dataset_from_arrays, load_dataset, take_shots
from ghn_jax.data.registry import DATASETS
from ghn_jax.data.splits import ArraySplit, hold_out_last, repeat_channel, split_at_random


def _all(split):
    return split.read(np.arange(len(split)))


def test_digits_split_is_fixed_disjoint_and_complete():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    sizes = [len(dataset.split(name)) for name in ("train", "validation", "test")]
    assert sizes == [1257, 180, 360]
    assert (dataset.num_classes, dataset.image_size, dataset.num_channels) == (10, 8, 3)
    parts = [_all(dataset.split(name)) for name in ("train", "validation", "test")]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    assert images.dtype == np.float32 and labels.dtype == np.int32
    np.testing.assert_array_equal(images[..., 0], images[..., 2])
    # Together the splits hold each published image (with its label) exactly once.
    published = load_digits()
    rows = np.concatenate([images[..., 0].reshape(-1, 64) * 16, labels[:, None]], axis=1)
    expected = np.concatenate([published.data, published.target[:, None]], axis=1)
    np.testing.assert_array_equal(
        rows[np.lexsort(rows.T)], expected.astype(np.float32)[np.lexsort(expected.T)]
    )
    for _, part_labels in parts:
        assert set(part_labels.tolist()) == set(range(10))
    # numpy's documented frozen stream of RandomState decides the order.
    first = np.random.RandomState(0).permutation(1797)[0]  # noqa: NPY002
    np.testing.assert_array_equal(parts[0][0][0, ..., 0], published.images[first] / 16)


def test_digits_statistics_normalise_the_training_images():
    dataset = load_dataset("digits")
    images, _ = _all(dataset.train)
    np.testing.assert_allclose(dataset.mean, images.mean(axis=(0, 1, 2), dtype=np.float64))
    np.testing.assert_allclose(dataset.std, images.std(axis=(0, 1, 2), dtype=np.float64))


def test_digits_does_not_import_tfds():
    code = (
        "import sys, ghn_jax.data as data; data.load_dataset('digits', image_size=16);"
        "print([m for m in ('tensorflow_datasets', 'tensorflow', 'jax') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "tensorflow" not in result.stdout


def test_image_size_resizes_what_is_read():
    dataset = load_dataset("digits", image_size=16)
    assert dataset.image_size == 16
    images, _ = dataset.test.read(np.arange(3))
    assert dataset.eval_transform(images).shape == (3, 16, 16, 3)
    assert dataset.train_transform(images, np.random.default_rng(0)).shape == (3, 16, 16, 3)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"name is 'cifar-10' \(did you mean 'cifar10'\?\)"):
        load_dataset("cifar-10")
    with pytest.raises(ValueError, match="image_size is 0, expected a positive int"):
        load_dataset("digits", image_size=0)
    with pytest.raises(ValueError, match=r"split is 'val', expected 'train', 'validation', 'test'"):
        load_dataset("digits").split("val")


@pytest.fixture
def loaders(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(DATASETS, "_loaders", dict(DATASETS._loaders))


def _grey(image_size=None, name="mine", **fields):
    images = np.linspace(0, 1, 6 * 16, dtype=np.float32).reshape(6, 4, 4, 1)
    numbers = images.mean((1, 2))  # (6, 1), what is no class
    parts = {
        split: ArraySplit(images[2 * i : 2 * i + 2], numbers[2 * i : 2 * i + 2])
        for i, split in enumerate(("train", "validation", "test"))
    }
    return dataset_from_arrays(name, parts, image_size=image_size, **fields)


def test_data_sets_of_ones_own_have_names(loaders):
    calls = []

    @ghn_jax.register_dataset("mine")
    def load(data_dir, image_size):
        calls.append((data_dir, image_size))
        return _grey(image_size)

    @ghn_jax.register_dataset("at:")
    def load_at(location, data_dir, image_size):
        calls.append((location, data_dir, image_size))
        return _grey(image_size, f"at:{location}")

    dataset = load_dataset("mine", "folder", 8)
    assert (dataset.image_size, dataset.num_channels, dataset.num_classes) == (8, 3, None)
    # Channels are repeated, and only then normalised; labels stay what they are.
    np.testing.assert_allclose(dataset.mean, [np.linspace(0, 1, 96)[:32].mean()] * 3, rtol=1e-6)
    images, labels = TrainBatches(dataset, 2, seed=0).batch(0)
    assert images.shape == (2, 8, 8, 3) and labels.shape == (2, 1)
    assert images.dtype == labels.dtype == np.float32
    assert load_dataset("at:a:b/c", num_channels=1).name == "at:a:b/c"
    assert calls == [("folder", 8), ("a:b/c", None, None)]
    assert list(DATASETS)[:3] == ["digits", "npz:", "idx:"]
    ghn_jax.register_dataset("mine")(load)  # a cell that runs again


def test_names_of_data_sets_are_checked(loaders):
    known = r"expected one of digits, npz:<location>, idx:<location>, cifar10, .*imagenet2012, or"
    with pytest.raises(ValueError, match=rf"^name is 'digit' \(did you mean 'digits'\?\), {known}"):
        load_dataset("digit")
    for name in ("npy:x.npy", "npz:", 3):
        with pytest.raises(ValueError, match=rf"^name is {name!r}.* {known}.*register_dataset$"):
            load_dataset(name)
    with pytest.raises(ValueError, match="^name is 'digits', expected another: it is that of _l"):
        ghn_jax.register_dataset("digits")(_grey)
    for name in ("", ":", "a:b", None):
        with pytest.raises(ValueError, match=f"^name is {name!r}, expected that of a data set, or"):
            ghn_jax.register_dataset(name)
    ghn_jax.register_dataset("nothing")(lambda data_dir, image_size: None)
    with pytest.raises(ValueError, match="returned None, expected the Dataset 'nothing'$"):
        load_dataset("nothing")


def test_labels_that_are_no_classes():
    with pytest.raises(ValueError, match="^num_classes of the data set 'mine' is None, expected"):
        take_shots(_grey(), 1)
    with pytest.raises(ValueError, match="^labels has 1 rows, expected the 2 of images"):
        ArraySplit(np.zeros((2, 4, 4, 1), np.float32), np.zeros((1, 2), np.float32))


def test_channels_of_images_that_do_not_lie_in_memory_are_not_repeated():
    class OnDisk:
        def __len__(self):
            return 2

    dataset = dataclasses.replace(_grey(), train=OnDisk())
    assert repeat_channel(dataset, 1) is dataset
    with pytest.raises(ValueError, match="^num_channels is 3, expected 1 .* do not lie in memory$"):
        repeat_channel(dataset, 3)


def test_split_functions():
    split = ArraySplit(np.arange(25.0).reshape(25, 1, 1, 1), np.arange(25, dtype=np.int32))
    train, held_out = hold_out_last(split)
    assert train.labels.tolist() == list(range(23)) and held_out.labels.tolist() == [23, 24]
    parts = split_at_random(split, num_validation=4, num_test=6)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [15, 4, 6]
    labels = np.concatenate([part.labels for part in parts.values()])
    assert sorted(labels.tolist()) == list(range(25))
    for part in parts.values():
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
    subset = parts["train"].subset(np.array([2, 0]))
    assert subset.labels.tolist() == parts["train"].labels[[2, 0]].tolist()
    assert subset.labels_at(np.array([1])).tolist() == [parts["train"].labels[0]]


# --- npz files


def _npz(tmp_path, **arrays):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def _images(num_images=40, size=5, channels=3, dtype=np.uint8):
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, size, size, channels))
    return pixels.astype(np.uint8) if dtype == np.uint8 else (pixels / 255).astype(dtype)


def _labels(num_images=40):
    return np.arange(num_images) % 4


def test_npz_of_one_array(tmp_path):
    dataset = load_dataset(_npz(tmp_path, images=_images(), labels=_labels()))
    sizes = [len(dataset.split(name)) for name in ("train", "validation", "test")]
    assert sizes == [32, 4, 4]
    assert (dataset.num_classes, dataset.image_size) == (4, 5)
    parts = [_all(dataset.split(name)) for name in ("train", "validation", "test")]
    found = {
        image.tobytes(): label
        for images, labels in parts
        for image, label in zip(images, labels, strict=True)
    }
    assert found == {
        image.tobytes(): label for image, label in zip(_images(), _labels(), strict=True)
    }
    train_images = parts[0][0] / 255
    np.testing.assert_allclose(dataset.mean, train_images.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(dataset.std, train_images.std(axis=(0, 1, 2)))


def test_npz_of_splits(tmp_path):
    arrays = {
        "train_images": _images(30, channels=1, dtype=np.float64),
        "train_labels": _labels(30),
        "test_images": _images(7, channels=1)[..., 0],  # another dtype, without the channel axis
        "test_labels": _labels(7).astype(np.uint8),
    }
    dataset = load_dataset(_npz(tmp_path, **arrays, num_classes=9, mean=0.5, std=[0.1, 0.2, 0.3]))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (27, 3, 7)
    assert dataset.num_classes == 9
    assert dataset.mean == (0.5, 0.5, 0.5) and dataset.std == (0.1, 0.2, 0.3)
    images, labels = _all(dataset.validation)
    assert images.dtype == np.float32 and images.shape == (3, 5, 5, 3)
    np.testing.assert_allclose(images[..., 1], arrays["train_images"][27:, ..., 0], rtol=1e-6)
    assert labels.tolist() == _labels(30)[27:].tolist()
    own = {"validation_images": _images(2), "validation_labels": _labels(2)}
    dataset = load_dataset(_npz(tmp_path, **arrays, **own))
    assert (len(dataset.train), len(dataset.validation)) == (30, 2)


def test_npz_path_is_relative_to_data_dir(tmp_path):
    _npz(tmp_path, images=_images(), labels=_labels())
    assert len(load_dataset("npz:own.npz", data_dir=tmp_path).test) == 4


NPZ_ERRORS = {
    "missing": ({"images": _images()}, r"has the entries images; expected images and labels, or"),
    "unknown": (
        {"images": _images(), "labels": _labels(), "names": _labels()},
        "has the unknown entries names; expected images, labels, num_classes, mean, std",
    ),
    "half": (
        {
            "train_images": _images(),
            "train_labels": _labels(),
            "test_images": _images(),
            "test_labels": _labels(),
            "validation_images": _images(),
        },
        "lacks the entry 'validation_labels'",
    ),
    "channels first": (
        {"images": _images().transpose(0, 3, 1, 2), "labels": _labels()},
        r"images has shape \(40, 3, 5, 5\).*looks like \(N, C, H, W\)",
    ),
    "channels": (
        {"images": _images(channels=4), "labels": _labels()},
        r"shape \(40, 5, 5, 4\) and dtype uint8, expected \(N, H, W, C\) with C 1 or 3$",
    ),
    "dimensions": ({"images": _images()[0, 0], "labels": _labels()}, r"has shape \(5, 3\)"),
    "not square": ({"images": _images()[:, :4], "labels": _labels()}, "expected square images"),
    "dtype": (
        {"images": _images().astype(np.int32), "labels": _labels()},
        "dtype int32, expected uint8 or a floating dtype",
    ),
    "range": (
        {"images": _images().astype(np.float32), "labels": _labels()},
        r"has values in \[0.0, 255.0\], expected \[0, 1\]",
    ),
    "nan": (
        {"images": np.full((40, 5, 5, 3), np.nan), "labels": _labels()},
        r"has values in \[nan, nan\]",
    ),
    "float labels": (
        {"images": _images(), "labels": _labels().astype(float)},
        r"labels has shape \(40,\) and dtype float64, expected integers of shape \(N,\)",
    ),
    "label count": (
        {"images": _images(), "labels": _labels(39)},
        "labels has 39 entries for 40 images",
    ),
    "negative label": (
        {"images": _images(), "labels": _labels() - 1},
        "has the label -1, expected labels from 0",
    ),
    "label range": (
        {"images": _images(), "labels": _labels(), "num_classes": 3},
        "has the label 3, expected labels below num_classes = 3",
    ),
    "wrapping label": (  # 0 as int32
        {"images": _images(), "labels": _labels() * 2**32},
        "has the label 12884901888, expected labels below 1000000",
    ),
    "unsigned label": (
        {"images": _images(), "labels": np.full(40, 2**64 - 1, np.uint64)},
        "has the label 18446744073709551615, expected labels below 1000000",
    ),
    "many classes": (
        {"images": _images(), "labels": _labels(), "num_classes": 10**12},
        "num_classes is 1000000000000, expected at most 1000000",
    ),
    "small std": (
        {"images": _images(), "labels": _labels(), "std": [0.1, 1e-300, 0.1]},
        r"std is .*, expected entries in \[1e-06, 1\] as of images in \[0, 1\]",
    ),
    "mean of bytes": (
        {"images": _images(), "labels": _labels(), "mean": [127.5] * 3},
        r"mean is .*, expected entries in \[0, 1\] as of images in \[0, 1\]",
    ),
    "classes": (
        {"images": _images(), "labels": _labels(), "num_classes": [3, 4]},
        r"num_classes is array\(\[3, 4\]\), expected one integer",
    ),
    "std": (
        {"images": _images(), "labels": _labels(), "std": [0.1, 0.0, 0.1]},
        "std is .*, expected positive entries",
    ),
    "mean": (
        {"images": _images(), "labels": _labels(), "mean": [0.1, 0.0]},
        "mean is .*, expected 1 or 3 finite floats",
    ),
    "few": (
        {"images": _images(9), "labels": _labels(9)},
        "leaves the validation split without images",
    ),
    "sizes": (
        {
            "train_images": _images(),
            "train_labels": _labels(),
            "test_images": _images(size=6),
            "test_labels": _labels(),
        },
        r"has images of sizes \[5, 6\], expected one size",
    ),
    "objects": (
        {"images": np.array([None, "a"]), "labels": _labels()},
        "cannot be read as a .npz file of plain arrays",
    ),
}


@pytest.mark.parametrize("case", NPZ_ERRORS)
def test_npz_errors(tmp_path, case):
    arrays, message = NPZ_ERRORS[case]
    name = _npz(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message) as raised:
        load_dataset(name)
    assert str(tmp_path / "own.npz") in str(raised.value)


def test_npz_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at .*absent.npz"):
        load_dataset(f"npz:{tmp_path}/absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").touch()
    for file in ("text.npz", "array.npy", "empty.npz"):
        with pytest.raises(ValueError, match=f"{file} cannot be read as a .npz file"):
            load_dataset(f"npz:{tmp_path}/{file}")


# --- tfds


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "imagenet2012"])
def test_missing_data_set_names_the_command(tmp_path, name):
    with pytest.raises(FileNotFoundError) as raised:
        load_dataset(name, data_dir=tmp_path)
    message = str(raised.value)
    assert f"data set '{name}' is not prepared" in message
    assert f"`tfds build {name} --file_format=array_record --data_dir={tmp_path}`" in message
    assert ("ILSVRC2012_img_train.tar" in message) == (name == "imagenet2012")
    assert not list(tmp_path.iterdir())  # nothing was downloaded or written


def test_missing_data_set_names_the_environment_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        load_dataset("cifar10")


@pytest.mark.parametrize(
    ("name", "size", "num_classes"),
    [("cifar10", 32, 10), ("cifar100", 32, 100), ("fashion_mnist", 28, 10)],
)
def test_sets_in_memory_on_mock_data(name, size, num_classes):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=30):
        dataset = load_dataset(name)
    assert (dataset.image_size, dataset.num_classes) == (size, num_classes)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (27, 3, 30)
    images, labels = dataset.validation.read(np.array([2, 0]))
    assert images.shape == (2, size, size, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    if name == "fashion_mnist":
        np.testing.assert_array_equal(images[..., 0], images[..., 1])


def test_imagenet_on_mock_data_decodes_what_is_read(monkeypatch):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=60):
        dataset = load_dataset("imagenet2012")
    assert (dataset.image_size, dataset.num_classes) == (224, 1000)
    # 60 * 50000 / 1281167 = 2.3
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (58, 2, 60)
    assert not set(dataset.train.indices) & set(dataset.validation.indices)
    read = []
    records = dataset.train.records
    original = type(records).__getitem__
    monkeypatch.setattr(
        type(records), "__getitem__", lambda self, key: read.append(key) or original(self, key)
    )
    images, labels = dataset.train.read(np.array([5, 1]))
    assert read == [5, 1] and labels.shape == (2,) and labels.dtype == np.int32
    crops = dataset.train_transform(images, np.random.default_rng(0))
    assert crops.shape == (2, 224, 224, 3) and crops.dtype == np.uint8
    assert dataset.eval_transform(images).shape == (2, 224, 224, 3)
    dataset.validation.subset(np.array([1])).read(np.array([0]))
    assert read == [5, 1, 59]


def _prepare(monkeypatch, name, examples, data_dir):
    """Prepare a real tfds data set of our own examples; PIL images need no TensorFlow to encode."""
    import tensorflow_datasets as tfds

    builder_cls = tfds.builder_cls(name)
    monkeypatch.setattr(
        builder_cls,
        "_split_generators",
        lambda self, manager: {split: iter(rows.items()) for split, rows in examples.items()},
    )
    tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()


def _random_images(num_images, size):
    return np.random.default_rng(num_images).integers(
        0, 256, (num_images, size, size, 3), dtype=np.uint8
    )


def test_cifar_on_disk_comes_in_the_published_order(tmp_path, monkeypatch):
    pixels = {"train": _random_images(30, 32), "test": _random_images(11, 32)}
    examples = {
        split: {
            i: {"id": f"{split}_{i:05d}", "image": Image.fromarray(image), "label": i % 10}
            for i, image in enumerate(images)
        }
        for split, images in pixels.items()
    }
    _prepare(monkeypatch, "cifar10", examples, tmp_path)
    dataset = load_dataset("cifar10", data_dir=tmp_path)
    for split, expected, first in (
        ("train", pixels["train"][:27], 0),
        ("validation", pixels["train"][27:], 27),
        ("test", pixels["test"], 0),
    ):
        images, labels = _all(dataset.split(split))
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, (first + np.arange(len(expected))) % 10)
    assert "tensorflow" not in sys.modules


def test_imagenet_on_disk(tmp_path, monkeypatch):
    pixels = {"train": _random_images(30, 40), "validation": _random_images(5, 40)}
    examples = {
        split: {
            f"{split}{i}.JPEG": {
                "file_name": f"{split}{i}.JPEG",
                "image": Image.fromarray(image),
                "label": 7 * i,
            }
            for i, image in enumerate(images)
        }
        for split, images in pixels.items()
    }
    _prepare(monkeypatch, "imagenet2012", examples, tmp_path)
    dataset = load_dataset("imagenet2012", data_dir=tmp_path, image_size=32)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (29, 1, 5)
    labels = {
        split: dataset.split(split).labels_at(np.arange(len(dataset.split(split))))
        for split in ("train", "validation", "test")
    }
    assert sorted([*labels["train"], *labels["validation"]]) == [7 * i for i in range(30)]
    assert sorted(labels["test"]) == [7 * i for i in range(5)]
    images, read_labels = dataset.train.read(np.arange(29))
    np.testing.assert_array_equal(read_labels, labels["train"])
    for image, label in zip(images, read_labels, strict=True):
        # JPEG loses detail, but not which image it is.
        errors = np.abs(pixels["train"].astype(int) - image).mean(axis=(1, 2, 3))
        assert errors.argmin() == label // 7
    assert dataset.eval_transform(images).shape == (29, 32, 32, 3)
    # Several threads decode at once, and change nothing.
    batches = TrainBatches(dataset, batch_size=4, seed=0)
    with batches.prefetch(num_workers=3, buffer_size=4) as iterator:
        for step in range(10):
            batch_images, batch_labels = next(iterator)
            np.testing.assert_array_equal(batch_images, batches.batch(step)[0])
            np.testing.assert_array_equal(batch_labels, batches.batch(step)[1])
    assert "tensorflow" not in sys.modules


def test_grey_images_have_as_many_channels_as_asked_for():
    grey, repeated = load_dataset("digits", num_channels=1), load_dataset("digits")
    assert grey.num_channels == 1 and grey.train.images.shape == (1257, 8, 8, 1)
    np.testing.assert_array_equal(repeated.train.images, np.repeat(grey.train.images, 3, axis=3))
    assert repeated.mean == grey.mean * 3 and repeated.std == grey.std * 3
    assert repeated.train.images.strides[-1] == 0  # views


def test_colour_images_keep_their_channels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=_labels())
    assert load_dataset(f"npz:{tmp_path}/a.npz").num_channels == 3
    with pytest.raises(ValueError, match="^num_channels is 1, expected 3 for the data set 'npz:"):
        load_dataset(f"npz:{tmp_path}/a.npz", num_channels=1)
    with pytest.raises(ValueError, match="^num_channels is 0, expected a positive int"):
        load_dataset("digits", num_channels=0)
