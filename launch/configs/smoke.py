"""A few steps of everything, to see that a machine can run it.

Source: chosen by us, as small as it gets.
Command: python -m launch.train --config launch/configs/smoke.py
    --workdir runs/smoke
Hardware: a CPU with two cores.
Result: nothing to learn in so few steps; not yet run.
"""

import ml_collections

from ghn_jax.architectures import OPERATIONS
from launch.config_flags import default_config


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = default_config()
    config.data.name = "digits"
    config.data.batch_size = 8

    config.space.split = "train"
    config.space.widths = (16,)
    config.space.allowed_operations = tuple(op for op in OPERATIONS if op != "msa")
    config.space.num_cells = (4, 4)
    config.space.max_steps = 1
    config.space.fc_sizes = (64,)
    config.space.global_pool_only = True
    config.space.image_size = 8
    config.space.num_classes = 10

    config.ghn.num_classes = 10
    config.ghn.hidden_size = 8
    config.ghn.max_shape = (8, 8, 7, 7)

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "constant"

    config.training.num_steps = 4
    config.training.meta_batch_size = 2
    config.training.target_dropout = False
    config.training.checkpoint_every = 2
    config.training.log_every = 1
    config.training.evaluate_every = 4

    config.evaluation.splits = (("test", 2),)
    config.evaluation.image_split = "test"
    config.evaluation.max_images = 64
    return config
