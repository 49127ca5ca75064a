"""Augmentation against hand-computed values and loops over images."""

import numpy as np
import pytest

from ghn_jax.data import (
    CenterCrop,
    CropAndFlip,
    RandomResizedCrop,
    Resize,
    add_gaussian_noise,
    normalize,
)
from ghn_jax.data.augmentation import sample_crop_box


def _numbered_images(num_images=200, size=6):
    """Images with pixels 1 .. size * size: 0 is padding, and a pixel tells its place."""
    pixels = np.arange(1, size * size + 1, dtype=np.uint8).reshape(size, size)
    return np.broadcast_to(pixels[None, :, :, None], (num_images, size, size, 3)).copy()


def test_normalize_hand_computed():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)  # 0, 0.2, 1
    result = normalize(images, mean=(0.5, 0.1, 0.75), std=(0.25, 0.2, 0.5))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), [-2.0, 0.5, 0.5], rtol=1e-6)
    floats = np.array([0.0, 0.2, 1.0], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(
        normalize(floats, (0.5, 0.1, 0.75), (0.25, 0.2, 0.5)), result, rtol=1e-6
    )


def test_normalize_errors():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"mean is \(0.5,\), expected 3 entries"):
        normalize(images, (0.5,), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"std is \(1.0, 0.0, 1.0\), expected positive entries"):
        normalize(images, (0.5, 0.5, 0.5), (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="images have dtype int64, expected uint8"):
        normalize(images.astype(np.int64), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


def test_every_crop_is_a_shifted_and_perhaps_mirrored_window():
    images = _numbered_images()
    result = CropAndFlip(padding=2)(images, np.random.default_rng(0))
    assert result.shape == images.shape and result.dtype == np.uint8
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)))
    windows = {
        padded[top : top + 6, left : left + 6][:, ::step].tobytes(): (top, left, step)
        for top in range(5)
        for left in range(5)
        for step in (1, -1)
    }
    assert len(windows) == 50
    found = [windows[image.tobytes()] for image in result]  # KeyError if one is no such window
    assert {top for top, _, _ in found} == set(range(5))
    assert {left for _, left, _ in found} == set(range(5))
    # 200 fair coins: 60 .. 140 heads is 5.6 standard deviations.
    assert 60 < sum(step == -1 for _, _, step in found) < 140


def test_crop_settings():
    images = _numbered_images(20)
    original = images.copy()
    unchanged = CropAndFlip(padding=0, flip=False)(images, np.random.default_rng(0))
    np.testing.assert_array_equal(unchanged, images)
    flipped = CropAndFlip(padding=0)(images, np.random.default_rng(0))
    is_same = [np.array_equal(image, images[0]) for image in flipped]
    is_mirrored = [np.array_equal(image, images[0][:, ::-1]) for image in flipped]
    assert all(np.logical_xor(is_same, is_mirrored)) and any(is_same) and any(is_mirrored)
    # The same generator shifts the same way with and without flips.
    shifted = CropAndFlip(padding=1, flip=False)(images, np.random.default_rng(3))
    both = CropAndFlip(padding=1, flip=True)(images, np.random.default_rng(3))
    for one, other in zip(shifted, both, strict=True):
        assert np.array_equal(one, other) or np.array_equal(one[:, ::-1], other)
    np.testing.assert_array_equal(images, original)
    with pytest.raises(ValueError, match="padding is -1, expected at least 0"):
        CropAndFlip(padding=-1)


def test_resize_keeps_dtype_constants_and_linear_ramps():
    for dtype, value in ((np.uint8, 77), (np.float32, 0.3)):
        images = np.full((2, 8, 8, 3), value, dtype)
        result = Resize(12)(images)
        assert result.shape == (2, 12, 12, 3) and result.dtype == dtype
        np.testing.assert_allclose(result, np.full((2, 12, 12, 3), value), rtol=1e-6)
    ramp = np.tile(np.arange(4, dtype=np.float32)[None, None, :, None], (1, 4, 1, 3))
    # Doubling puts samples at 0.25 and 0.75 of each pixel; the ends have no neighbour outside.
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    np.testing.assert_allclose(Resize(8)(ramp)[0, 3, :, 1], expected, rtol=1e-6)
    assert Resize(None)(images) is images
    assert CropAndFlip(2, True, 16)(images, np.random.default_rng(0)).shape == (2, 16, 16, 3)


def test_noise_is_clipped_has_its_std_and_is_reproducible():
    images = np.full((8, 32, 32, 3), 0.5, np.float32)
    noisy = add_gaussian_noise(images, 0.08, np.random.default_rng(0))
    assert noisy.dtype == np.float32
    # 24576 samples; the standard deviation's own error is 0.08 / sqrt(2 * 24576) = 0.0004.
    assert abs(float(noisy.std()) - 0.08) < 0.002 and abs(float(noisy.mean()) - 0.5) < 0.002
    np.testing.assert_array_equal(noisy, add_gaussian_noise(images, 0.08, np.random.default_rng(0)))
    bright = add_gaussian_noise(
        np.full((1, 9, 9, 3), 255, np.uint8), 0.18, np.random.default_rng(1)
    )
    assert bright.max() == 1.0 and bright.min() > 0
    with pytest.raises(ValueError, match="noise_std is -0.1, expected a finite number"):
        add_gaussian_noise(images, -0.1, np.random.default_rng(0))


def test_crop_boxes_fit_and_have_the_allowed_area_and_aspect():
    generator = np.random.default_rng(0)
    height, width = 300, 400
    areas = []
    for _ in range(500):
        left, top, right, bottom = sample_crop_box(height, width, generator)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        # Rounding moves an edge by half a pixel of at least 60.
        assert 0.73 < (right - left) / (bottom - top) < 1.37
        areas.append((right - left) * (bottom - top) / (height * width))
    assert 0.078 < min(areas) < 0.15 and 0.85 < max(areas) <= 1


def test_crop_box_of_a_narrow_image_is_central():
    # No rectangle with an aspect of at least 3/4 and 8 % of the area fits in 1000 x 10 pixels.
    box = sample_crop_box(1000, 10, np.random.default_rng(0))
    assert box == (0, 493, 10, 506)  # 10 / (3/4) = 13 rows


def test_random_resized_crop_of_any_sizes():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 70), (33, 9))]
    result = RandomResizedCrop(24)(images, np.random.default_rng(5))
    assert result.shape == (2, 24, 24, 3) and result.dtype == np.uint8
    again = RandomResizedCrop(24)(images, np.random.default_rng(5))
    np.testing.assert_array_equal(result, again)
    other = RandomResizedCrop(24)(images, np.random.default_rng(6))
    assert not np.array_equal(result, other)


def test_center_crop_takes_the_middle():
    # The shorter side already has 256 pixels, so nothing is resized: rows 16..239, columns 72..295.
    image = np.random.default_rng(0).integers(0, 256, (256, 368, 3), dtype=np.uint8)
    result = CenterCrop(224)([image, image.transpose(1, 0, 2)])
    assert result.shape == (2, 224, 224, 3)
    np.testing.assert_array_equal(result[0], image[16:240, 72:296])
    np.testing.assert_array_equal(result[1], image.transpose(1, 0, 2)[72:296, 16:240])
    # 47 x 17 grows to (256 * 47 // 17) x 256.
    assert CenterCrop(224)([np.zeros((47, 17, 3), np.uint8)]).shape == (1, 224, 224, 3)
