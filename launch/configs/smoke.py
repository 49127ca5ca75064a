"""A few steps of everything, to check that a machine can run it.

Source: our own choice, as small as possible: of 60 seeds, these compile the fewest programs, and
    evaluation has the batch size of training in order to share its programs.
Command: python launch/train.py --config launch/configs/smoke.py --workdir runs/smoke
Hardware: a CPU with two cores.
Result: so few steps learn nothing.
"""

import ml_collections

from ghn_jax.cli.config_dict import default_config


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = default_config()
    config.data.name = "digits"
    config.data.batch_size = 8

    config.space.split = "train"
    config.space.widths = (8,)
    config.space.fc_sizes = (16,)
    config.space.allowed_operations = ("skip_connect", "max_pool_3x3", "dil_conv_3x3", "conv_1x1")
    config.space.num_cells = (4, 4)
    config.space.max_steps = 1
    config.space.global_pool_only = True
    config.space.image_size = 8
    config.space.num_classes = 10

    config.ghn.num_classes = 10
    config.ghn.hidden_size = 8
    config.ghn.max_shape = (8, 8, 7, 7)

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "constant"

    config.training.num_steps = 2
    config.training.meta_batch_size = 2
    config.training.target_dropout = False
    config.training.checkpoint_every = 1
    config.training.log_every = 1

    config.evaluation.splits = (("test", 2),)
    config.evaluation.image_split = "test"
    config.evaluation.batch_size = 8
    config.evaluation.max_images = 16
    config.evaluation.seed = 1
    return config
