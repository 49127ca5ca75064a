"""`digits`, trained longer.

Source: chosen by us, as in `digits`.
Command: python launch/train.py --config launch/configs/digits_long.py
    --workdir /tmp/ghn_digits_long
Hardware: two cores of an AMD EPYC, shared with other jobs; 53 minutes.
Result: seed 0, 100 unseen architectures of `test`, test images, predicted parameters: 86.0 +- 0.6%
    (random 9.8%); wide 49.4, deep 81.7, dense 85.2, bnfree 28.8 (20 each). It is
    `ghn_jax.load("digits")`.
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
