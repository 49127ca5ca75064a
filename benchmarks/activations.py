"""Measure how far activations are from He's scale, as predicted and rescaled.

    python benchmarks/activations.py [--networks vgg16 resnet50] [--ghn digits] [--image-size 64]

For every network, the factor between the root mean square of a layer's output and that of the same
network with He's initialisation, for the layer that is furthest away, and the root mean square of
the logits: as predicted, with every kernel's size made He's ("fan_in"), and with every layer's
output brought to He's on normally distributed numbers ("noise") and on the images themselves
("images"). The images are digits of scikit-learn, enlarged. Batch norms use the statistics of the
batch; dropout and stochastic depth are off. With --sampled, the same as predicted for architectures
drawn as in the GHN's training, on images of their size. Results: docs/results.md.
"""

import argparse
import time
import warnings

import flax.linen as nn
import jax
import numpy as np
from sklearn.datasets import load_digits

import ghn_jax
from ghn_jax.models import MODELS, SMALL_MODELS, build, field_defaults

STAGES = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
NETWORKS = (
    "vgg16 vgg16_bn resnet18 resnet50 densenet121 mobilenet_v2 efficientnet_b0 convnext_t swin_t"
    " vit_b16"
).split()
WAYS = ("plain", "fan_in", "noise", "images")


class VGG16(nn.Module):
    """VGG-16 without norms (Simonyan and Zisserman, ICLR 2015), without dropout."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for widths in STAGES:
            for width in widths:
                x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096)(x))
        return nn.Dense(self.num_classes)(x)


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = ("vgg16", *MODELS, *SMALL_MODELS)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=known, help="Which.")
    parser.add_argument("--ghn", default="digits", help="Path or name of the GHN.")
    parser.add_argument("--image-size", type=int, default=64, help="Height and width, pixels.")
    parser.add_argument("--batch-size", type=int, default=4, help="Number of images.")
    parser.add_argument("--sampled", type=int, default=0, help="Architectures, instead.")
    arguments = parser.parse_args()
    ghn = ghn_jax.load(arguments.ghn)
    for index in range(arguments.sampled):
        print(measure_sampled(index, ghn), flush=True)
    if arguments.sampled:
        return
    images = read_images(arguments.batch_size, arguments.image_size)
    print(
        f"{jax.devices()[0].device_kind}, {jax.__version__}; {images.shape[0]} images of"
        f" {images.shape[1]} px; largest factor beside He's, and scale of the logits"
    )
    print(f"{'':>16}{'layers':>7}" + "".join(f"{way:>18}" for way in WAYS) + f"{'seconds':>9}")
    for name in arguments.networks:
        print(measure(name, ghn, images), flush=True)


def read_images(batch_size: int, size: int) -> np.ndarray:
    """Return digits as (B, S, S, 3) images in [0, 1]."""
    digits = load_digits().images[:batch_size, :, :, None].astype(np.float32) / 16
    shape = (batch_size, size, size, 3)
    return np.asarray(jax.image.resize(np.repeat(digits, 3, axis=-1), shape, "linear"))


def measure_sampled(index: int, ghn: ghn_jax.GHN) -> str:
    """Measure an architecture of the training space: its classifier, and its other layers."""
    space = ghn.experiment.space
    images = read_images(16, space.image_size)
    architecture = ghn_jax.sample_architecture(space, seed=1, index=index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        *layers, head = ghn.predict(architecture, check=images).report.scales
    ratios = [layer.ratio for layer in layers]
    return (
        f"architecture {index}: {len(ratios)} layers {min(ratios):.2g} to {max(ratios):.3g} times"
        f" He's, classifier {head.ratio:.3g}"
    )


def make(name: str, num_classes: int) -> nn.Module:
    """Build a network whose random parts are off."""
    if name == "vgg16":
        return VGG16(num_classes)
    rates = {field: 0.0 for field, x in field_defaults(name).items() if isinstance(x, float)}
    return build(name, num_classes, **rates)


def measure(name: str, ghn: ghn_jax.GHN, images: np.ndarray) -> str:
    """Measure one network, and return its line of the table."""
    start = time.perf_counter()
    module = make(name, ghn.config.num_classes)
    line, num_layers = "", 0
    for way in WAYS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            prediction = ghn.predict(
                module, images, train=True, check=images, rescale=way != "plain" and way
            )
        scales = prediction.report.scales
        num_layers = len(scales)
        logits, _ = module.apply(prediction.variables, images, train=True, mutable=["batch_stats"])
        size = np.sqrt(np.mean(np.square(logits, dtype=np.float64)))
        line += f"{max(layer.factor for layer in scales):>9.3g}{size:>9.3g}"
    return f"{name:>16}{num_layers:>7}{line}{time.perf_counter() - start:>9.0f}"


if __name__ == "__main__":
    main()
