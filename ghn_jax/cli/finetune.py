"""Fine-tune networks from predicted parameters, and compare with random ones.

    ghn-jax finetune --config finetune_study --ghn digits
        --architecture small_resnet,small_vit --init random,ghn,ghn-noise,ghn-orth
        --workdir /tmp/study

Fine-tunes every initialisation with each learning rate of the config's grid and with several seeds,
then evaluates the rate that is best on validation images on test images. Prints a table and writes
it, with learning curves, to the work directory. The same command resumes unfinished work; SIGTERM
and Ctrl-C save and exit with status 75.
"""

import dataclasses
from collections.abc import Sequence
from typing import NoReturn

from absl import flags
from rich.console import Console

import ghn_jax
from ghn_jax.cli import config_flags
from ghn_jax.cli.command_line import fail
from ghn_jax.cli.network_flags import define_deepnets_flag, define_ghn_flag
from ghn_jax.data import check_classes, load_dataset
from ghn_jax.evaluation.architecture_specs import resolve_module
from ghn_jax.finetune.comparison import Comparison
from ghn_jax.finetune.comparison_report import rich_table
from ghn_jax.finetune.config import FinetuneConfig
from ghn_jax.training.interruption import exit_on_signals

FLAGS = flags.FLAGS
define_ghn_flag("; not needed for --init=random")
flags.DEFINE_list(
    "architecture",
    None,
    "Networks, separated by commas: names from ghn_jax.models (small_resnet, resnet50, ...),"
    " SPLIT/INDEX in a DeepNets-1M file (val/3), or package.module:factory for a Flax module.",
)
flags.DEFINE_list(
    "init", None, "Initialisations: random, ghn, ghn-noise, ghn-orth; by default the config's."
)
flags.DEFINE_string(
    "first_layer",
    None,
    "First layer to post-process, counted from 1, or auto for the first of the second half; by"
    " default the config's.",
)
define_deepnets_flag()


def main(config: FinetuneConfig, workdir: str) -> None:
    """Run the comparison that the flags and the config describe."""
    if not FLAGS.architecture:
        fail("--architecture is missing, expected the networks to fine-tune")
    config = _override(config)
    exit_on_signals(f"the runs that have ended are kept in {workdir}")
    data = config.data
    dataset = load_dataset(data.name, data.data_dir, data.image_size, data.num_channels)
    ghn = None if FLAGS.ghn is None else ghn_jax.load(FLAGS.ghn)
    comparison = Comparison(config, dataset, ghn, workdir, FLAGS.ghn or "")
    num_classes = check_classes(dataset)
    modules = {
        spec: resolve_module(
            spec, dataset.image_size, num_classes, FLAGS.deepnets, dataset.num_channels
        )
        for spec in FLAGS.architecture
    }
    rows = comparison.run(modules)
    Console().print(rich_table(rows))
    print(f"wrote {workdir}/table.md, {workdir}/results.json and {workdir}/curves.png")


def _override(config: FinetuneConfig) -> FinetuneConfig:
    """Override the config with the flags."""
    if FLAGS.init is not None:
        config = dataclasses.replace(config, inits=tuple(FLAGS.init))
    if FLAGS.first_layer is not None:
        number = None if FLAGS.first_layer == "auto" else FLAGS.first_layer
        if number is not None and not number.lstrip("-").isdecimal():
            raise ValueError(f"--first_layer is {number!r}, expected auto or an int from 1")
        config = dataclasses.replace(config, first_layer=None if number is None else int(number))
    return config


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    config_flags.run(main, argv, config_type=FinetuneConfig, kind="finetune")
