"""Transformations of images between a data set and a network.

In: images (B, H, W, C), uint8 in [0, 255] or float32 in [0, 1], or a sequence of (h, w, C) uint8
images of any sizes. Out: the same dtype at one size; `normalize` then gives the float32 the network
reads. Host-side numpy and Pillow; randomness comes from a `np.random.Generator`.

The recipes are those of Knyazev et al. 2021 (arXiv 2110.13100), after DARTS: CIFAR-10 pads by 4,
crops and flips; ImageNet crops at random sizes and flips. The original also jitters ImageNet's
colours (brightness, contrast and saturation 0.4, hue 0.2); that is left out here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghn_jax.extras import extra

Images = np.ndarray | Sequence[np.ndarray]

# Random resized crops as in Szegedy et al. 2015 (arXiv 1409.4842): part of the area, aspect ratio.
AREA_RANGE = (0.08, 1.0)
ASPECT_RANGE = (3 / 4, 4 / 3)
NUM_CROP_ATTEMPTS = 10

# ImageNet's evaluation resizes the shorter side to 256 for a 224 crop; other sizes keep the ratio.
RESIZE_PER_CROP = 256 / 224


def to_unit_range(images: np.ndarray) -> np.ndarray:
    """Bring images to float32 in [0, 1].

    Args:
      images: any shape, uint8 in [0, 255] or floating in [0, 1].

    Returns:
      float32 of the same shape; uint8 is divided by 255.

    Raises:
      ValueError: if the dtype is neither uint8 nor floating.
    """
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if np.issubdtype(images.dtype, np.floating):
        return images.astype(np.float32)
    raise ValueError(f"images have dtype {images.dtype}, expected uint8 or a floating dtype")


def normalize(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Bring images to [0, 1], subtract the mean and divide by the standard deviation.

    Args:
      images: (..., C), uint8 in [0, 255] or floating in [0, 1].
      mean: C channel means of images in [0, 1].
      std: C positive channel standard deviations of images in [0, 1].

    Returns:
      float32, same shape.

    Raises:
      ValueError: if mean or std do not have C entries, or an entry of std is not positive.
    """
    num_channels = images.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != num_channels:
            raise ValueError(
                f"{name} is {tuple(values)}, expected {num_channels} entries,"
                f" one per channel of images of shape {images.shape}"
            )
    if not all(value > 0 for value in std):
        raise ValueError(f"std is {tuple(std)}, expected positive entries")
    unit_images = to_unit_range(images)
    return (unit_images - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def add_gaussian_noise(
    images: np.ndarray, noise_std: float, generator: np.random.Generator
) -> np.ndarray:
    """Add Gaussian noise and clip to [0, 1], as in the robustness protocol.

    Args:
      images: any shape, uint8 in [0, 255] or floating in [0, 1].
      noise_std: standard deviation on the [0, 1] scale: 0.08 for CIFAR-10, 0.18 for ImageNet.
      generator: the source of randomness.

    Returns:
      float32 in [0, 1], same shape.

    Raises:
      ValueError: if noise_std is negative or not finite.
    """
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise ValueError(f"noise_std is {noise_std!r}, expected a finite number of at least 0")
    unit_images = to_unit_range(images)
    noise = generator.standard_normal(images.shape, dtype=np.float32)
    return np.clip(unit_images + np.float32(noise_std) * noise, 0.0, 1.0)


def cut_out(images: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    """Set a square of each image to 0: Cutout (DeVries and Taylor 2017, arXiv 1708.04552).

    The square's centre is anywhere in the image, so part of it may lie outside.

    Args:
      images: (B, H, W, C), normalised: 0 is the mean colour.
      length: side of the square, pixels; 16 for CIFAR-10 in DARTS. 0 cuts nothing.
      generator: the source of randomness.

    Returns:
      A new array, same shape and dtype.
    """
    num_images, height, width, _ = images.shape
    centres = generator.integers(0, (height, width), size=(num_images, 2))
    first = centres - length // 2
    last = first + length
    rows, columns = np.arange(height), np.arange(width)
    in_rows = (rows >= first[:, :1]) & (rows < last[:, :1])  # (B, H)
    in_columns = (columns >= first[:, 1:]) & (columns < last[:, 1:])  # (B, W)
    hole = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return np.where(hole, images.dtype.type(0), images)


@dataclass(frozen=True)
class CropAndFlip:
    """Pad with black, crop back to the size at a random place, mirror every second image.

    Attributes:
      padding: pixels of black on each side; 0 does not crop. With `flip=False` it is a random
        shift by up to `padding` pixels.
      flip: whether to mirror left and right with probability 1/2.
      image_size: resize to this height and width afterwards; None keeps the size.
    """

    padding: int = 4
    flip: bool = True
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding is {self.padding!r}, expected at least 0")

    def __call__(self, images: Images, generator: np.random.Generator) -> np.ndarray:
        """Return (B, image_size, image_size, C) of the images' dtype."""
        stacked = np.asarray(images)
        num_images, height, width, _ = stacked.shape
        # Both draws are made whatever the settings, so that switching one off leaves the other.
        shift = generator.integers(0, 2 * self.padding + 1, size=(num_images, 2))
        flip_chance = 0.5 if self.flip else 0.0
        flip_mask = np.less(generator.random(size=(num_images, 1)), flip_chance)

        pad = (self.padding, self.padding)
        padded = np.pad(stacked, ((0, 0), pad, pad, (0, 0)))
        rows = shift[:, :1] + np.arange(height)  # (B, H)
        columns = shift[:, 1:] + np.arange(width)  # (B, W)
        columns = np.where(flip_mask, columns[:, ::-1], columns)
        image_index = np.arange(num_images)[:, None, None]
        cropped = padded[image_index, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
        return Resize(self.image_size)(cropped)


@dataclass(frozen=True)
class Resize:
    """Resize to a square, bilinear with antialiasing.

    Attributes:
      image_size: height and width; None keeps the size.
    """

    image_size: int | None = None

    def __call__(self, images: Images) -> np.ndarray:
        """Return (B, image_size, image_size, C) of the images' dtype."""
        stacked = np.asarray(images)
        size = self.image_size
        if size is None or stacked.shape[1:3] == (size, size):
            return stacked
        return np.stack([resize_image(image, size, size) for image in stacked])


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop 8 to 100 % of the area at an aspect of 3/4 to 4/3, resize to a square, maybe mirror.

    Attributes:
      image_size: height and width of the result.
    """

    image_size: int = 224

    def __call__(self, images: Images, generator: np.random.Generator) -> np.ndarray:
        """Return (B, image_size, image_size, C) uint8 from images of any sizes."""
        crops = []
        for image in images:
            box = sample_crop_box(image.shape[0], image.shape[1], generator)
            crop = resize_image(image, self.image_size, self.image_size, box)
            crops.append(crop[:, ::-1] if generator.random() < 0.5 else crop)
        return np.stack(crops)


@dataclass(frozen=True)
class CenterCrop:
    """Resize the shorter side to 256/224 of the crop's size, then take the centre.

    Attributes:
      image_size: height and width of the result.
    """

    image_size: int = 224

    def __call__(self, images: Images) -> np.ndarray:
        """Return (B, image_size, image_size, C) uint8 from images of any sizes."""
        shorter_size = round(self.image_size * RESIZE_PER_CROP)
        crops = []
        for image in images:
            height, width = image.shape[:2]
            shorter = min(height, width)
            # The longer side is cut to a whole number, as in torchvision.
            new_height = shorter_size * height // shorter
            new_width = shorter_size * width // shorter
            resized = resize_image(image, new_height, new_width)
            top = round((resized.shape[0] - self.image_size) / 2)
            left = round((resized.shape[1] - self.image_size) / 2)
            crops.append(resized[top : top + self.image_size, left : left + self.image_size])
        return np.stack(crops)


def sample_crop_box(
    height: int, width: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a rectangle of random area and aspect inside an image.

    Args:
      height: the image's height in pixels.
      width: the image's width in pixels.
      generator: the source of randomness.

    Returns:
      (left, top, right, bottom) in pixels, right and bottom exclusive. After ten rectangles that
      do not fit, the largest central one whose aspect is allowed.
    """
    for _ in range(NUM_CROP_ATTEMPTS):
        area = height * width * generator.uniform(*AREA_RANGE)
        aspect = math.exp(generator.uniform(math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(generator.integers(0, width - crop_width + 1))
            top = int(generator.integers(0, height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = max(1, min(width, round(height * ASPECT_RANGE[1])))
    crop_height = max(1, min(height, round(width / ASPECT_RANGE[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def resize_image(
    image: np.ndarray, height: int, width: int, box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Resize one image, or a rectangle of it, bilinear with antialiasing (Pillow's).

    Args:
      image: (h, w, C), uint8 with C = 3 or float32 with any C.
      height: rows of the result.
      width: columns of the result.
      box: (left, top, right, bottom) of the rectangle to resize; None takes all.

    Returns:
      (height, width, C) of the image's dtype.
    """
    with extra("train", "images of another size"):
        from PIL import Image
    size = (width, height)
    if image.dtype == np.uint8:
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box))
    # Pillow has no float colour images: each channel is resized as a picture of its own.
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel], dtype=np.float32)).resize(
            size, Image.Resampling.BILINEAR, box
        )
        for channel in range(image.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
