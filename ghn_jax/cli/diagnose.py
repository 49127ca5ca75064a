"""Draw how alike the filters of predicted parameters are, layer by layer.

    ghn-jax diagnose --ghn digits --architecture small_resnet --out diagnosis.png

Shows, for each initialisation (random, predicted, predicted with noise, predicted and orthogonal),
the mean correlation between filters, the stable rank and the norm relative to He initialisation of
every kernel, in one figure, and prints their means in a table.
"""

from collections.abc import Sequence
from typing import NoReturn

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

import ghn_jax
from ghn_jax.cli.command_line import run_program
from ghn_jax.cli.network_flags import define_deepnets_flag, define_ghn_flag
from ghn_jax.configuration import limits
from ghn_jax.evaluation.architecture_specs import resolve_module
from ghn_jax.finetune.config import INITS
from ghn_jax.finetune.diagnosis import diagnose, draw_diagnosis
from ghn_jax.finetune.initialization import NetworkInitializer

FLAGS = flags.FLAGS
define_ghn_flag()
flags.DEFINE_string(
    "architecture", None, "Network, named as for finetune: small_resnet, resnet50, val/3."
)
define_deepnets_flag()
flags.DEFINE_string("out", None, "Image to write: .png, .svg or .pdf.")
flags.DEFINE_list("init", list(INITS), "Initialisations to draw.")
flags.DEFINE_integer(
    "first_layer",
    1,
    "First layer to post-process, counted from 1.",
    lower_bound=1,
    upper_bound=limits.COUNT,
)
flags.DEFINE_float("noise_beta", 3e-5, "Scale of the noise.", lower_bound=0.0)
flags.DEFINE_integer(
    "image_size",
    None,
    "The network's image size in pixels; by default the GHN's.",
    lower_bound=1,
    upper_bound=limits.IMAGE_SIZE,
)
flags.mark_flags_as_required(["ghn", "architecture", "out"])


def main() -> None:
    """Diagnose the network that the flags name."""
    ghn = ghn_jax.load(FLAGS.ghn)
    size = FLAGS.image_size or ghn.experiment.space.image_size
    num_classes, num_channels = ghn.config.num_classes, ghn.experiment.space.num_channels
    module = resolve_module(FLAGS.architecture, size, num_classes, FLAGS.deepnets, num_channels)
    initializer = NetworkInitializer(
        module,
        ghn,
        size,
        num_classes,
        num_channels=num_channels,
        noise_beta=FLAGS.noise_beta,
        first_layer=FLAGS.first_layer,
    )
    diagnoses = {}
    for init in FLAGS.init:
        kernels = initializer.read_kernels(initializer.make(init, jax.random.key(0)))
        diagnoses[init] = diagnose(initializer.layers, kernels)
    draw_diagnosis(diagnoses, FLAGS.out, FLAGS.architecture)
    table = Table(title=f"{FLAGS.architecture}, {len(initializer.layers)} kernels, means")
    for column in ("init", "correlation", "stable rank", "norm / He"):
        table.add_column(column, justify="left" if column == "init" else "right")
    for init, layers in diagnoses.items():
        means = (np.mean([getattr(layer, f) for layer in layers]) for f in layers[0]._fields[3:])
        table.add_row(init, *(f"{mean:.3f}" for mean in means))
    Console().print(table)
    print(f"wrote {FLAGS.out}")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    run_program(main, argv)
