"""Images given as arrays: what is read, and one clear error for everything else."""

import numpy as np
import pytest

from ghn_jax.data import EvaluationBatches
from ghn_jax.evaluation.image_files import read_images, read_labelled_images

IMAGES = np.random.default_rng(0).standard_normal((5, 8, 8, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 9])


def save(path, array):
    np.save(path, array)
    return path


def test_images_are_read_as_they_are(tmp_path):
    np.testing.assert_array_equal(read_images(save(tmp_path / "x.npy", IMAGES)), IMAGES)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            IMAGES.transpose(0, 3, 1, 2),
            r"shape \(5, 3, 8, 8\).*: it looks like NCHW, use images",
        ),
        (IMAGES[..., :1], r"shape \(5, 8, 8, 1\) and dtype float32, expected \(images, height,"),
        (IMAGES[0], r"shape \(8, 8, 3\)"),
        (IMAGES[:, :6], r"shape \(5, 6, 8, 3\) .*, expected at least one image, as high as wide"),
        (IMAGES[:0], r"shape \(0, 8, 8, 3\) .*, expected at least one image"),
        (IMAGES.astype(np.float64), "dtype float64, expected .* float32, already normalised"),
        (IMAGES.astype(np.uint8), "dtype uint8, expected .* float32, already normalised"),
        (np.where(IMAGES > 2, np.nan, IMAGES).astype(np.float32), "values that are not finite"),
    ],
)
def test_other_images_are_refused(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        read_images(save(tmp_path / "x.npy", images))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere.npy is not there, expected a file of images"):
        read_images(tmp_path / "nowhere.npy")
    (tmp_path / "text.npy").write_text("images")
    with pytest.raises(ValueError, match="text.npy cannot be read as plain numpy arrays"):
        read_images(tmp_path / "text.npy")
    np.save(tmp_path / "objects.npy", np.array([print], object))
    with pytest.raises(ValueError, match="objects.npy cannot be read as plain numpy arrays"):
        read_images(tmp_path / "objects.npy")
    np.savez(tmp_path / "x.npz", images=IMAGES)
    with pytest.raises(ValueError, match="x.npz holds several arrays, expected a .npy file of one"):
        read_images(tmp_path / "x.npz")


def test_labelled_images_are_not_normalised_again(tmp_path):
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    dataset = read_labelled_images(tmp_path / "x.npz", image_size=8, num_classes=10)
    (batch,) = EvaluationBatches(dataset, "test", batch_size=5)
    np.testing.assert_array_equal(batch.images, IMAGES)
    np.testing.assert_array_equal(batch.labels, LABELS)
    assert batch.counted_mask.all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "holds images, expected a .npz file of 'images' and 'labels'"),
        ({"images": IMAGES, "labels": LABELS[:4]}, r"labels has shape \(4,\) .*, expected 5 integ"),
        ({"images": IMAGES, "labels": LABELS.astype(float)}, "dtype float64, expected 5 integers"),
        ({"images": IMAGES, "labels": LABELS + 1}, r"labels lie in 1\.\.10, expected 0\.\.9"),
        ({"images": IMAGES, "labels": LABELS - 1}, r"labels lie in -1\.\.8, expected 0\.\.9"),
        (
            {"images": IMAGES[:, :4, :4], "labels": LABELS},
            "images has shape .*, expected images of 8x8 pixels",
        ),
    ],
)
def test_other_labelled_images_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_labelled_images(tmp_path / "x.npz", image_size=8, num_classes=10)
    with pytest.raises(ValueError, match="holds a single array, expected a .npz file"):
        read_labelled_images(save(tmp_path / "x.npy", IMAGES), 8, 10)


def test_images_of_one_channel(tmp_path):
    grey = IMAGES[..., :1]
    np.testing.assert_array_equal(read_images(save(tmp_path / "x.npy", grey), 1), grey)
    np.savez(tmp_path / "x.npz", images=grey, labels=np.zeros(len(grey), np.int32))
    dataset = read_labelled_images(tmp_path / "x.npz", 8, 10, num_channels=1)
    assert dataset.num_channels == 1 and dataset.mean == (0.0,)
    with pytest.raises(ValueError, match=r"expected \(images, height, width, 3\) float32"):
        read_images(tmp_path / "x.npy")
