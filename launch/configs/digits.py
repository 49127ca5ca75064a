"""A GHN-2 on scikit-learn's 8x8 digits, which trains in minutes on a laptop.

Source: our own choice. The space is that of DeepNets-1M without attention, 16 channels wide.
Command: python launch/train.py --config launch/configs/digits.py
    --workdir /tmp/ghn_digits
Hardware: two cores of an AMD EPYC; 748 s including installation.
Result: with seed 0, predicted parameters reach 91.4% top-1 on the test images, on 100 unseen
    architectures of `test` (random parameters 9.8%); wide 66.8, deep 81.7, dense 91.5, bnfree
    78.6 (20 architectures each). Three seeds gave 90 to 92% on 50 of `test`.
"""

import ml_collections

from ghn_jax.architectures import OPERATIONS
from ghn_jax.cli.config_dict import default_config


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
    config.ghn.max_shape = (16, 16, 7, 7)

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 4e-3
    # Every step has new architectures, so squared gradients are soon out of date.
    config.optimizer.betas = (0.9, 0.95)
    config.optimizer.schedule = "linear"
    config.optimizer.milestones = ()
    config.optimizer.warmup_steps = 50

    # What is learned from small networks carries over to larger ones, and their steps are cheap.
    config.curriculum.num_cells = ((0, 1, 3), (1000, 2, 6), (3000, 4, 12))
    config.training.num_steps = 3000
    config.training.meta_batch_size = 4
    config.training.target_dropout = False
    config.training.checkpoint_every = 200
    config.training.log_every = 10
    config.training.evaluate_every = None

    ood = (("wide", 20), ("deep", 20), ("dense", 20), ("bnfree", 20))
    config.evaluation.splits = (("test", 100), *ood)
    config.evaluation.image_split = "test"
    return config
