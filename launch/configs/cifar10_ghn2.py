"""GHN-2 on CIFAR-10, as published.

Source: Knyazev et al., NeurIPS 2021 (arXiv 2110.13100), section 5, and the published code.
Command: python -m launch.train --config launch/configs/cifar10_ghn2.py
    --workdir runs/cifar10_ghn2
Hardware: one GPU; not yet timed here.
Result: not yet run. Published: 66.9 % mean top-1 on the test split.
"""

import ml_collections

from ghn_jax.cli.config_dict import default_config

STEPS_PER_EPOCH = 45_000 // 64


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.batch_size = 64

    config.space.split = "train"
    config.space.image_size = 32
    config.space.num_classes = 10

    config.ghn.num_classes = 10
    config.ghn.hidden_size = 32
    config.ghn.max_shape = (64, 64, 11, 11)
    config.ghn.message_passing = "gated_gnn"
    config.ghn.virtual_edges = 50
    config.ghn.layer_norm = True
    config.ghn.normalize_parameters = True
    config.ghn.decoder = "conv"

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "step"
    config.optimizer.milestones = (200 * STEPS_PER_EPOCH, 250 * STEPS_PER_EPOCH)
    config.optimizer.decay_factor = 0.1
    config.optimizer.weight_decay = 1e-5
    config.optimizer.clip_norm = 5.0

    config.training.num_steps = 300 * STEPS_PER_EPOCH
    config.training.meta_batch_size = 8
    config.training.max_nodes = 2200
    config.training.checkpoint_every = STEPS_PER_EPOCH
    config.training.log_every = 100
    config.training.evaluate_every = 10 * STEPS_PER_EPOCH

    config.evaluation.splits = (
        ("test", 500),
        ("wide", 100),
        ("deep", 100),
        ("dense", 100),
        ("bnfree", 100),
        ("predefined", 2),
    )
    config.evaluation.image_split = "test"
    return config
