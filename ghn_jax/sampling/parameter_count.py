"""Count the parameters of an architecture as the original counts them.

In: an architecture and an image size. Out: the number of parameters in all layers the network is
built with, including those cut off by a `none` or a dropped concat member. This is the number that
published files give as `num_params` and that the sampling rules compare with their limits;
`Plan.num_parameters` counts only what reaches the output, which is what a GHN predicts.

The formulas follow from the layers listed in docs/method.md, 'Operations'. They take a few
microseconds, so that large candidates can be rejected before they are lowered.
"""

from __future__ import annotations

import functools

from ghn_jax.architectures import ATTENTION_HEADS, Architecture
from ghn_jax.targets.plan import NUM_IMAGE_CHANNELS, SMALL_IMAGE_LIMIT


def count_parameters(
    architecture: Architecture,
    image_size: int,
    num_classes: int,
    num_channels: int = NUM_IMAGE_CHANNELS,
) -> int:
    """Count the parameters of a network, including unused layers.

    Args:
        architecture: an architecture of the DeepNets space.
        image_size: height and width of the images, in pixels; above 64 the network is the
            large-image variant.
        num_classes: width of the output.
        num_channels: number of image channels.

    Returns:
        The number of parameters.
    """
    large = image_size > SMALL_IMAGE_LIMIT
    stem_count, stem_width = _count_stem(architecture, image_size, large, num_channels)
    total = stem_count
    width, before_previous, previous = architecture.channels, stem_width, stem_width
    norm = 0 if architecture.norm is None else 2
    strided = not architecture.has_attention
    for cell in range(architecture.num_cells):
        reduces = architecture.is_reduction(cell)
        width *= architecture.channel_multiplier if reduces else 1
        if architecture.preprocess:
            total += (before_previous + previous) * width + 2 * norm * width
        genotype = architecture.genotype
        pairs = genotype.reduce if reduces else genotype.normal
        for operation, state in pairs:
            total += _count_operation(operation, width, norm, reduces and strided and state < 2)
        concat = genotype.reduce_concat if reduces else genotype.normal_concat
        before_previous, previous = previous, width * len(concat)
    features = previous
    if not architecture.global_pool:
        features *= _final_side(architecture, image_size, large) ** 2
    for _ in range(architecture.num_fc_layers - 1):
        total += (features + 1) * architecture.fc_size
        features = architecture.fc_size
    return total + (features + 1) * num_classes


def _count_stem(
    architecture: Architecture, image_size: int, large: bool, inputs: int
) -> tuple[int, int]:
    """Return the number of parameters of the stem and the width of its output."""
    width = architecture.channels
    norm = 0 if architecture.norm is None else 2
    kernel = architecture.stem_kernel**2
    if architecture.has_attention:
        patch, padding = (16, 0) if large else (3, 1)
        side = (image_size + 2 * padding) // patch
        return inputs * patch**2 * width + width * side**2, width
    if architecture.stem_type == 0:
        width *= 3 if architecture.preprocess and not large else 1
        return (inputs * kernel + norm) * width, width
    half = width // 2
    first = (inputs * kernel + norm) * half
    return first + (9 * half + norm) * width + (9 * width + norm) * width, width


@functools.lru_cache(maxsize=4096)
def _count_operation(operation: str, width: int, norm: int, strided: bool) -> int:
    """Count an operation's parameters at constant width; `norm` is a norm's per channel, 2 or 0."""
    if operation in ("none", "max_pool_3x3", "avg_pool_3x3"):
        return 0
    if operation == "skip_connect":
        return (width + norm) * width if strided else 0
    if operation == "cse":
        half = width // 2
        return (width + 1) * half + (half + 1) * width
    if operation == "msa":
        inner = ATTENTION_HEADS * (width // ATTENTION_HEADS)
        attention = 3 * width * inner + (inner + 1) * width
        return attention + 2 * (width + 1) * width + 2 * 2 * width
    if operation == "conv_7x1_1x7":
        return (2 * 7 * width + norm) * width
    kind, size = operation.rsplit("_", 1)
    kernel = int(size[0]) ** 2
    if kind == "conv":
        return (kernel * width + norm) * width
    separable = (kernel + width + norm) * width
    return separable if kind == "dil_conv" else 2 * separable


def _final_side(architecture: Architecture, image_size: int, large: bool) -> int:
    """Return the height and width of the last cell's output, for networks without attention."""
    num_halvings = 2 if large else 0
    num_halvings += architecture.stem_type == 1 or architecture.stem_pool
    num_halvings += sum(architecture.is_reduction(cell) for cell in range(architecture.num_cells))
    side = image_size
    for _ in range(num_halvings):
        side = (side + 1) // 2
    return side
