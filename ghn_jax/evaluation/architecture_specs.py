"""Which network a command line means: the one place where `--architecture SPEC` is understood.

In: `val/3` (split and index of a DeepNets-1M file), `resnet50`, `vit`, or `package.module:factory`.
Out: a plan and its graph, at an image size and with a number of classes.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn

from ghn_jax.architectures import PREDEFINED, Architecture, ResNet
from ghn_jax.configuration.validation import check_choice, suggest
from ghn_jax.graphs import ArchGraph
from ghn_jax.models import MODELS, SMALL_MODELS, build, field_defaults
from ghn_jax.sampling import SPLITS
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.targets.plan import NUM_IMAGE_CHANNELS, SMALL_IMAGE_LIMIT, Plan, lower

if TYPE_CHECKING:
    from ghn_jax.deepnets1m.reader import DeepNets1M

_STORED = re.compile(r"(?P<split>[a-z0-9_]+)/(?P<index>-?\d+)")
_FACTORY = re.compile(r"(?P<module>\w+(\.\w+)*):(?P<name>\w+)")
_FORMS = f"SPLIT/INDEX (such as val/3), {', '.join(PREDEFINED)}, or package.module:factory"


class PlannedNetwork(NamedTuple):
    """A network whose parameters can be predicted.

    Attributes:
        plan: what it computes.
        graph: what a GHN reads, its tensors in the order of `plan.tensors`.
    """

    plan: Plan
    graph: ArchGraph


def resolve_architecture(
    spec: str,
    image_size: int,
    num_classes: int,
    max_distance: int,
    deepnets: str | os.PathLike[str] | None = None,
    num_channels: int = NUM_IMAGE_CHANNELS,
) -> PlannedNetwork:
    """Build the network that a SPEC means.

    Args:
        spec: `SPLIT/INDEX`, a predefined name, or `package.module:factory`, a function without
            arguments that returns an `Architecture` or a `ResNet`.
        image_size: height and width of its images, pixels; up to 64 is the small-image variant.
        num_classes: width of its output.
        max_distance: longest distance with an edge in its graph.
        deepnets: folder of the file that `SPLIT/INDEX` refers to.
        num_channels: channels of the images; those of stored networks have 3.

    Returns:
        The network. The graph of `SPLIT/INDEX` is the file's, as the original reads it.

    Raises:
        ValueError: if the SPEC has none of these forms, or what it names is not there.
    """
    if match := _STORED.fullmatch(spec):
        check_choice("split", match["split"], tuple(SPLITS))
        if deepnets is None:
            raise ValueError(f"architecture is {spec!r}, expected --deepnets: the folder to read")
        # Imported here, since files need h5py and most networks are of none.
        from ghn_jax.deepnets1m.reader import DeepNets1M

        nets = DeepNets1M(deepnets, match["split"], image_size)
        index = int(match["index"])
        if not 0 <= index < len(nets):
            raise ValueError(
                f"architecture is {spec!r}, expected an index in 0..{len(nets) - 1}: {nets.path}"
                f" has {len(nets)} networks in split {match['split']!r}"
            )
        return stored_network(nets, index, num_classes, max_distance)
    if spec in PREDEFINED:
        return built_network(
            PREDEFINED[spec], (image_size, num_classes, num_channels), max_distance
        )
    if is_factory(spec):
        made = make_network(spec)
        if not isinstance(made, (Architecture, ResNet)):
            raise ValueError(
                f"architecture {spec!r} makes a {type(made).__name__}, expected an Architecture or"
                " a ResNet of ghn_jax.architectures"
            )
        return built_network(made, (image_size, num_classes, num_channels), max_distance)
    raise ValueError(
        f"architecture is {spec!r}{suggest(spec, tuple(PREDEFINED))}, expected {_FORMS}"
    )


def resolve_module(
    spec: str,
    image_size: int,
    num_classes: int,
    deepnets: str | os.PathLike[str] | None = None,
    num_channels: int = NUM_IMAGE_CHANNELS,
) -> nn.Module:
    """Make the Flax module that a SPEC means, to train it.

    Args:
        spec: as `resolve_architecture` takes; also a name of `ghn_jax.models`, and a
            `package.module:factory` that makes a Flax linen module.
        image_size: height and width of its images, pixels; up to 64 is the small-image variant.
        num_classes: width of its output.
        deepnets: folder of the file that `SPLIT/INDEX` refers to.
        num_channels: channels of the images; those of stored networks have 3.

    Returns:
        The module; a `TargetNetwork` for networks of the space and the predefined ones.

    Raises:
        ValueError: if the SPEC has none of these forms, or what it names is not there.
    """
    models = {**MODELS, **SMALL_MODELS}
    if spec in models and spec not in PREDEFINED:
        is_small = image_size <= SMALL_IMAGE_LIMIT and spec in MODELS
        has_small = is_small and "small_images" in field_defaults(spec)
        fields: dict[str, Any] = {"small_images": True} if has_small else {}
        return build(spec, num_classes, **fields)
    if is_factory(spec):
        made = make_network(spec)
        if isinstance(made, nn.Module):
            return made
    elif not is_stored(spec) and spec not in PREDEFINED:
        near = suggest(spec, (*PREDEFINED, *models))
        raise ValueError(
            f"architecture is {spec!r}{near}, expected {_FORMS}, or one of {', '.join(models)}"
        )
    network = resolve_architecture(spec, image_size, num_classes, 1, deepnets, num_channels)
    return TargetNetwork(network.plan)


def is_stored(spec: str) -> bool:
    """Whether a SPEC means a network of a DeepNets-1M file."""
    return _STORED.fullmatch(spec) is not None


def stored_network(
    nets: DeepNets1M, index: int, num_classes: int, max_distance: int, channels: int | None = None
) -> PlannedNetwork:
    """A network of a file, with the file's graph; `channels` replaces its width."""
    architecture = nets.architecture(index)
    if channels is not None:
        architecture = Architecture.from_official(nets.entry(index), channels=channels)
    plan = lower(architecture, nets.image_size, num_classes)
    return PlannedNetwork(plan, nets.graph(index, num_classes, max_distance, architecture))


def built_network(
    architecture: Architecture | ResNet, input_sizes: tuple[int, int, int], max_distance: int
) -> PlannedNetwork:
    """A network with the graph that our own code builds, see `SpaceConfig.input_sizes`."""
    plan = lower(architecture, *input_sizes)
    return PlannedNetwork(plan, build_graph(plan, max_distance))


def is_factory(spec: str) -> bool:
    """Whether a SPEC means what a function makes."""
    return _FACTORY.fullmatch(spec) is not None


def make_network(spec: str) -> Any:
    """Call the function of `package.module:factory`.

    Args:
        spec: for which `is_factory` holds; the package may lie in the current folder.

    Returns:
        What it returns: an architecture, or a network that `ghn_jax.tracing` can describe.

    Raises:
        ValueError: if there is no such function, or it wants arguments.
    """
    match = _FACTORY.fullmatch(spec)
    assert match is not None
    module_name, name = match["module"], match["name"]
    # As `python -m` does: a user's module lies where the command is run.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"architecture {spec!r}: {module_name} cannot be imported: {error}"
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        found = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"architecture {spec!r}: {module_name} has no function {name!r}{suggest(name, found)}"
        )
    try:
        return factory()
    except TypeError as error:
        raise ValueError(
            f"architecture {spec!r}: {name}() fails, expected a function without arguments: {error}"
        ) from error
