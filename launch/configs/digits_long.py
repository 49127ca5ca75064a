"""`digits`, trained longer.

Source: chosen by us, as in `digits`.
Command: python -m launch.train --config launch/configs/digits_long.py
    --workdir runs/digits_long
Hardware: a CPU with two cores.
Result: not yet run.
"""

import ml_collections

from ghn_jax.architectures import OPERATIONS
from launch.config_flags import default_config


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = default_config()
    config.data.name = "digits"
    config.data.batch_size = 64

    config.space.split = "train"
    config.space.widths = (16,)
    config.space.fc_sizes = (64,)
    config.space.allowed_operations = tuple(op for op in OPERATIONS if op != "msa")
    config.space.global_pool_only = True
    config.space.image_size = 8
    config.space.num_classes = 10

    config.ghn.num_classes = 10
    config.ghn.hidden_size = 32
    config.ghn.max_shape = (32, 32, 7, 7)

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100

    config.training.num_steps = 6000
    config.training.meta_batch_size = 4
    config.training.target_dropout = False
    config.training.checkpoint_every = 250
    config.training.log_every = 10
    config.training.evaluate_every = 500

    ood = (("wide", 20), ("deep", 20), ("dense", 20), ("bnfree", 20))
    config.evaluation.splits = (("test", 100), *ood)
    config.evaluation.image_split = "test"
    return config
