"""Train a single network from scratch, as the baseline for predicted parameters.

    ghn-jax train-network --config network_digits
        --architecture small_resnet --workdir /tmp/network [--ghn digits]
    ghn-jax train-network --config network_sgd50
        --architecture val/3 --deepnets data --workdir /tmp/network

Logs loss and validation accuracy by step and prints the accuracy on test images. With --ghn, also
prints and draws how many iterations of this training the GHN's predicted parameters are worth. The
same command resumes from the latest checkpoint; SIGTERM and Ctrl-C save and exit with status 75.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from absl import flags

import ghn_jax
from ghn_jax.cli import config_flags
from ghn_jax.cli.command_line import fail
from ghn_jax.cli.network_flags import define_deepnets_flag, define_ghn_flag
from ghn_jax.data import check_classes, load_dataset
from ghn_jax.evaluation.architecture_specs import resolve_module
from ghn_jax.finetune.config import NetworkConfig
from ghn_jax.finetune.initialization import NetworkInitializer
from ghn_jax.finetune.iterations import describe_iterations, draw_iterations
from ghn_jax.finetune.network_training import DivergedError, NetworkTrainer
from ghn_jax.finetune.regularized_network import RegularizedNetwork
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.training.interruption import exit_on_signals
from ghn_jax.training.run_loop import lock_run

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "architecture",
    None,
    "Network: a name from ghn_jax.models (small_resnet, resnet18, ...), SPLIT/INDEX in a"
    " DeepNets-1M file (val/3), resnet50, vit, or package.module:factory for a Flax module or an"
    " architecture, such as ghn_jax.architectures:darts.",
)
define_deepnets_flag()
define_ghn_flag("; its prediction is compared with the training")


def main(config: NetworkConfig, workdir: str) -> None:
    """Train, evaluate on test images and, if asked, compare with a prediction."""
    if not FLAGS.architecture:
        fail("--architecture is missing, expected the network to train")
    with lock_run(workdir):
        _train(config, workdir)


def _train(config: NetworkConfig, workdir: str) -> None:
    data, training = config.data, config.training
    dataset = load_dataset(data.name, data.data_dir, data.image_size, data.num_channels)
    size, num_classes = dataset.image_size, check_classes(dataset)
    plain = resolve_module(
        FLAGS.architecture, size, num_classes, FLAGS.deepnets, dataset.num_channels
    )
    module = plain
    if training.drop_path or training.auxiliary_weight:
        if not isinstance(plain, TargetNetwork):
            raise ValueError(
                f"training.drop_path is {training.drop_path} and training.auxiliary_weight is"
                f" {training.auxiliary_weight}, expected 0 for {FLAGS.architecture!r}: only"
                " networks of the architecture space have them"
            )
        module = RegularizedNetwork(plain.plan, bool(training.auxiliary_weight))
    ghn = None if FLAGS.ghn is None else ghn_jax.load(FLAGS.ghn)
    initializer = (
        None
        if ghn is None
        else NetworkInitializer(plain, ghn, size, num_classes, num_channels=dataset.num_channels)
    )
    trainer = NetworkTrainer(module, dataset, config)

    key = jax.random.key(training.seed)
    shape = (1, size, size, dataset.num_channels)
    init = jax.jit(lambda key: module.init(key, np.zeros(shape, np.float32)))
    variables = jax.tree.map(np.asarray, dict(init(key)))
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(f"{num_parameters:,} parameters, {trainer.num_steps:,} steps", flush=True)
    result = trainer.run(variables, workdir=workdir)
    exit_on_signals(f"training has ended and is saved in {workdir}, its evaluation has not")
    print(f"validation  top-1 {100 * result.curve[-1].accuracy:.2f}%")
    print(f"test        top-1 {100 * trainer.evaluate(result.variables, 'test'):.2f}%", flush=True)
    if initializer is not None:
        plain_trainer = trainer if module is plain else NetworkTrainer(plain, dataset, config)
        predicted = plain_trainer.calibrate(initializer.make("ghn", key))
        accuracy = plain_trainer.evaluate(predicted, "validation")
        print(describe_iterations(result.curve, accuracy, trainer.steps_per_epoch))
        path = Path(workdir) / "iterations.png"
        draw_iterations(result.curve, accuracy, path, FLAGS.architecture)
        print(f"wrote {path}")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    config_flags.run(main, argv, DivergedError, config_type=NetworkConfig, kind="network")
