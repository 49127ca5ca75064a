"""Set the scale of what was predicted: He's, by the size of every kernel or by what images give.

In: the tensors of a network's graph, predicted arrays, and perhaps a batch. Out: the network's
variables, and the scale of every layer's output beside that of the same network with He's
initialisation (He et al., ICCV 2015), which keeps it from layer to layer.

A GHN learns on networks with norms, to which the scale of a kernel means nothing. Without them what
is a little too large in every layer grows with depth, and so does what its filters have in common.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ghn_jax.arrays import PyTree
from ghn_jax.configuration.validation import check_choice
from ghn_jax.graphs.schema import ParameterTensor
from ghn_jax.targets.initialization import draw_tensors, he_std
from ghn_jax.tracing.activations import NetworkOnImages, Sources

FAN_IN, NOISE, IMAGES = "fan_in", "noise", "images"
# In architectures like those that the packaged GHN was trained on, and predicts well, classifiers
# are up to 28 times He's, and other layers within 14; in well-known networks with norms all are
# within 90. Without norms they leave any bound (docs/results.md, 'The scale of activations').
WARNING_FACTOR = 100.0
_UNSCALED = ("scale", "bias", "classifier_bias", "position")


@dataclasses.dataclass(frozen=True)
class LayerScale:
    """The scale of a layer's output, before its bias.

    Attributes:
        path: Path of its kernel, joined by "/"; in brackets the iteration of a scan over layers.
        scale: Root mean square, over all times that the layer is used.
        he_scale: The same of the network with He's initialisation.
        obstacle: Why `rescale` left the layer as it was; None if it did not.
    """

    path: str
    scale: float
    he_scale: float
    obstacle: str | None = None

    @property
    def ratio(self) -> float:
        """`scale` by `he_scale`."""
        if self.scale == self.he_scale:
            return 1.0
        return self.scale / self.he_scale if self.he_scale else math.inf

    @property
    def factor(self) -> float:
        """The ratio or its inverse, whichever is larger; infinity if it is not finite."""
        ratio = self.ratio
        return max(ratio, 1 / ratio) if 0 < ratio < math.inf else math.inf


def read_rescale(rescale: Any, is_checked: bool) -> str | None:
    """Return what `rescale` asks for, `FAN_IN`, `NOISE` or `IMAGES`; None for nothing.

    Raises:
        ValueError: If it is not as described in `GHN.predict`, or asks for images without any.
    """
    check_choice("rescale", rescale, (False, True, FAN_IN, NOISE, IMAGES))
    if rescale == IMAGES and not is_checked:
        raise ValueError("rescale is 'images', expected a batch of them: check=...")
    if rescale is True:
        return IMAGES if is_checked else NOISE
    return rescale or None


def set_scales(
    tensors: Sequence[ParameterTensor],
    arrays: Sequence[np.ndarray],
    fill: Callable[[Sequence[np.ndarray]], PyTree],
    read: Callable[[PyTree], NetworkOnImages],
    check: PyTree,
    noise: PyTree,
    rescale: str | None,
) -> tuple[PyTree, tuple[LayerScale, ...]]:
    """Make a network's variables of predicted arrays, set and check their scale.

    Args:
        tensors: The tensors of the network's graph.
        arrays: Their predicted values.
        fill: Makes variables of such values.
        read: Puts the network on images.
        check: The images on which the scales are measured; None measures none.
        noise: Images to use for `NOISE`, else not used.
        rescale: What `read_rescale` returns.

    Returns:
        The variables, and the scale of every layer in the order of depth.
    """
    variables = fill(rescale_by_fan_in(tensors, arrays) if rescale == FAN_IN else arrays)
    if check is None and rescale != NOISE:
        return variables, ()
    he_variables = fill(draw_tensors(tensors, np.random.default_rng(0)))
    obstacles: dict[Sources, str] = {}
    if rescale == NOISE:
        on_noise = read(noise)
        variables, obstacles = on_noise.correct(variables, on_noise.measure(he_variables))
    if check is None:
        return variables, ()
    on_images = read(check)
    wanted = on_images.measure(he_variables)
    if rescale == IMAGES:
        variables, obstacles = on_images.correct(variables, wanted)
    scales = tuple(
        LayerScale(
            on_images.name(sources),
            _mean(found),
            _mean(wanted.scales[sources]),
            obstacles.get(sources),
        )
        for sources, found in on_images.measure(variables).scales.items()
        if sources in wanted.scales  # else of a branch that only one of them takes
    )
    return variables, scales


def rescale_by_fan_in(
    tensors: Sequence[ParameterTensor], arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Multiply every kernel and table so that its root mean square is He's standard deviation.

    Args:
        tensors: The tensors of a network's graph.
        arrays: Their values.

    Returns:
        New values. Biases, scales of norms and positional encodings are as they were, and so is
        what is zero everywhere.
    """
    rescaled = []
    for tensor, array in zip(tensors, arrays, strict=True):
        size = float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
        if tensor.role not in _UNSCALED and size > 0:
            array = array * np.float32(he_std(tensor) / size)
        rescaled.append(array)
    return rescaled


def describe_scales(scales: Sequence[LayerScale]) -> list[str]:
    """Return the lines of a table of layers: scale, He's, and the ratio of the two."""
    if not scales:
        return []
    width = max(len("layer"), *(len(layer.path) for layer in scales))
    he = "He's scale"
    lines = [f"{'layer':<{width}}  {'scale':>9}  {he:>10}  {'ratio':>9}"]
    for layer in scales:
        line = f"{layer.path:<{width}}  {layer.scale:>9.3g}  {layer.he_scale:>10.3g}"
        line += f"  {layer.ratio:>9.3g}"
        lines.append(line if layer.obstacle is None else f"{line}  left: {layer.obstacle}")
    return lines


def describe_excess(scales: Sequence[LayerScale], has_state: bool = False) -> str | None:
    """Say which layers are more than `WARNING_FACTOR` away from He's; None if none is.

    Args:
        scales: The scales of a network's layers.
        has_state: Whether it has state that is kept as initialised, such as running statistics.
    """
    far = [layer for layer in scales if layer.factor > WARNING_FACTOR]
    if not far:
        return None
    first, most = far[0], max(far, key=lambda layer: layer.factor)
    text = (
        f"the outputs of {len(far)} of {len(scales)} layers are more than {WARNING_FACTOR:g} times"
        f" larger or smaller than with He's initialisation, first {_describe(first)}, most"
        f" {_describe(most)}"
    )
    if has_state:
        text += (
            "; norms that use running statistics did so with those of the initialiser: check the"
            " call that uses the batch's, such as train=True"
        )
    if all(layer.obstacle for layer in far):
        return f"{text}; why they could not be rescaled is in prediction.report.scales"
    return f"{text}; with rescale=True they are brought to He's"


def _describe(layer):
    return f"{layer.path} ({layer.scale:.3g}, He's {layer.he_scale:.3g})"


def _mean(scales):
    return math.sqrt(math.fsum(scale * scale for scale in scales) / len(scales))
