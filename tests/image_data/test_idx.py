"""MNIST's IDX files, written here byte by byte from the published description."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from ghn_jax.data import load_dataset

NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def _encode(array: np.ndarray) -> bytes:
    """Return an array as the bytes of an IDX file."""
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def _arrays() -> dict[str, np.ndarray]:
    """Return 30 training and 4 test images of 6x6, and their labels."""
    generator = np.random.default_rng(0)
    return {
        "train_images": generator.integers(0, 256, (30, 6, 6)),
        "train_labels": np.arange(30) % 3,
        "test_images": generator.integers(0, 256, (4, 6, 6)),
        "test_labels": np.arange(4),
    }


def _write(folder, arrays, compressed=()) -> str:
    """Write the four files, some with gzip, and return the name of the data set."""
    for key, array in arrays.items():
        content = _encode(array)
        if key in compressed:
            (folder / f"{NAMES[key]}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / NAMES[key]).write_bytes(content)
    return f"idx:{folder}"


@pytest.mark.parametrize("compressed", [(), tuple(NAMES)])
def test_reads_plain_and_compressed_files(tmp_path, compressed):
    arrays = _arrays()
    dataset = load_dataset(_write(tmp_path, arrays, compressed))

    assert (dataset.image_size, dataset.num_classes, dataset.num_channels) == (6, 4, 3)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (27, 3, 4)
    images, labels = dataset.validation.read(np.array([0, 2]))
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], arrays["train_images"][[27, 29]])
    np.testing.assert_array_equal(labels, arrays["train_labels"][[27, 29]])
    np.testing.assert_array_equal(dataset.test.read(np.arange(4))[1], np.arange(4))
    np.testing.assert_allclose(dataset.mean, arrays["train_images"][:27].mean() / 255, rtol=1e-6)


def test_resizes_and_reads_relative_to_the_data_folder(tmp_path):
    (tmp_path / "own").mkdir()
    _write(tmp_path / "own", _arrays())
    dataset = load_dataset("idx:own", data_dir=tmp_path, image_size=3)
    images, _ = dataset.test.read(np.array([1]))
    assert dataset.eval_transform(images).shape == (1, 3, 3, 3)


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at .*absent, expected one with MNIST"):
        load_dataset(f"idx:{tmp_path}/absent")
    arrays = _arrays()
    name = _write(tmp_path, arrays)
    train_images = tmp_path / NAMES["train_images"]

    def fails(match: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=match):
            load_dataset(name)

    train_images.write_bytes(_encode(arrays["train_images"])[:-1])
    fails(r"has 1079 elements, expected 1080 for its shape \(30, 6, 6\)")
    train_images.write_bytes(b"PK\x03\x04")
    fails("starts with the bytes 50 4b 03 04, expected 00 00 08 03")
    train_images.write_bytes(_encode(arrays["train_images"][:, :5]))
    fails(r"has shape \(30, 5, 6\), expected square images")
    train_images.write_bytes(_encode(arrays["train_images"][:, :5, :5]))
    fails("has images of sizes .*expected one size")
    train_images.write_bytes(_encode(arrays["train_images"][:7]))
    fails("has 30 labels for 7 images")
    train_images.unlink()
    fails("lacks train-images-idx3-ubyte .or .*; it holds t10k-images", FileNotFoundError)
    compressed = gzip.compress(_encode(arrays["train_images"]))
    train_images.with_name(f"{train_images.name}.gz").write_bytes(compressed[:-20])
    fails("gz cannot be decompressed")


@pytest.mark.parametrize("has_sizes", [True, False])
def test_compressed_files_expand_to_a_limit(tmp_path, has_sizes):
    name = _write(tmp_path, _arrays(), tuple(NAMES))
    header = struct.pack(">BBBB3i", 0, 0, 8, 3, 2**15, 2**14, 1)
    if not has_sizes:  # more than its sizes say, which is not read
        header = _encode(_arrays()["train_images"])
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header) + gzip.compress(bytes(2**20)) * 512)
    message = "expands to 536870912 bytes, expected at most 268435456$"
    if not has_sizes:
        message = "has more elements, expected 1080 for its shape"
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"^{path}: it {message}"):
        load_dataset(name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**7


@pytest.mark.parametrize("shape", [(-1, 6, 6), (2**31 - 1,) * 3, (30, 6, 7)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_sizes_that_are_not_the_files_name_it(tmp_path, shape, suffix):
    name = _write(tmp_path, _arrays(), tuple(NAMES) if suffix else ())
    content = struct.pack(">BBBB3i", 0, 0, 8, 3, *shape) + bytes(30 * 6 * 6)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=f"^{path}: it (has|expands to) .*, (expected|too few)"):
        load_dataset(name)
