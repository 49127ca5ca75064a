"""Draw the graph of a network and print its properties.

    ghn-jax draw --architecture resnet50 --out graph.svg
    ghn-jax draw --architecture my_package.my_module:make_network --out graph.png

ARCHITECTURE is a name from ghn_jax.models (resnet50, vit_b16, convnext_t, swin_t, ...), `vit` (the
12-layer one of the published results), SPLIT/INDEX in a DeepNets-1M file (val/3), or
PACKAGE.MODULE:FACTORY, a function without arguments that returns an architecture or a Flax, Haiku
or Equinox network. No parameters are allocated.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from absl import flags

from ghn_jax.architectures import VIT, Architecture, ResNet
from ghn_jax.cli.command_line import run_program
from ghn_jax.cli.network_flags import define_arguments_flag, define_deepnets_flag, parse_arguments
from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import check_choice
from ghn_jax.drawing import draw
from ghn_jax.evaluation.architecture_specs import (
    is_factory,
    is_stored,
    make_network,
    resolve_architecture,
)
from ghn_jax.graphs import ArchGraph
from ghn_jax.graphs.arch_graph import MAX_VIRTUAL_DISTANCE
from ghn_jax.graphs.properties import graph_properties
from ghn_jax.models import MODELS, SMALL_MODELS, build
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower
from ghn_jax.tracing import make_report, trace

FLAGS = flags.FLAGS
flags.DEFINE_string("architecture", None, "Name of a model, SPLIT/INDEX, or MODULE:FACTORY.")
define_deepnets_flag()
flags.DEFINE_string("out", None, "File to draw to: .svg, .pdf or .png.")
flags.DEFINE_integer(
    "image_size",
    224,
    "Height and width of the images, in pixels.",
    lower_bound=1,
    upper_bound=limits.IMAGE_SIZE,
)
flags.DEFINE_integer(
    "num_classes",
    1000,
    "Number of outputs of named networks.",
    lower_bound=1,
    upper_bound=limits.NUM_CLASSES,
)
flags.DEFINE_integer(
    "num_channels",
    3,
    "Number of channels of the images.",
    lower_bound=1,
    upper_bound=limits.NUM_CHANNELS,
)
flags.DEFINE_bool("small_images", False, "Use the variant of a named network for 32 px.")
define_arguments_flag()
flags.mark_flags_as_required(["architecture", "out"])


def main() -> None:
    """Draw the network that the flags name."""
    graph, report = make_graph(FLAGS.architecture)
    draw(graph, FLAGS.out, title=f"{FLAGS.architecture}: {graph_properties(graph)}")
    print(graph_properties(graph))
    if report:
        print(report)


def make_graph(spec: str) -> tuple[ArchGraph, str]:
    """Return a network's graph and, if it was traced, a report of what a GHN can predict."""
    size, num_classes = FLAGS.image_size, FLAGS.num_classes
    if FLAGS.small_images and (is_stored(spec) or is_factory(spec) or spec == "vit"):
        raise ValueError(f"--small_images is given for {spec!r}, expected a name of ghn_jax.models")
    if is_stored(spec):
        parse_arguments(FLAGS.arguments, is_traced=False)
        network = resolve_architecture(
            spec, size, num_classes, MAX_VIRTUAL_DISTANCE, FLAGS.deepnets
        )
        return network.graph, ""
    made = load_network(spec)
    is_architecture = isinstance(made, Architecture | ResNet)
    arguments = parse_arguments(FLAGS.arguments, is_traced=not is_architecture)
    if is_architecture:
        return build_graph(lower(made, size, num_classes, FLAGS.num_channels)), ""
    images = jax.ShapeDtypeStruct((2, size, size, FLAGS.num_channels), jnp.float32)
    traced = trace(made, images, num_classes=num_classes, **arguments)
    return traced.graph, str(make_report(traced))


def load_network(spec: str) -> Any:
    """Return the network or architecture that a name or a factory stands for."""
    if spec == "vit":
        return VIT
    if is_factory(spec):
        return make_network(spec)
    check_choice("architecture", spec, ("vit", *MODELS, *SMALL_MODELS))
    fields: dict[str, Any] = {"small_images": True} if FLAGS.small_images else {}
    return build(spec, FLAGS.num_classes, **fields)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    run_program(main, argv, ImportError, AttributeError)
