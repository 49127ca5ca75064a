"""A network trained on CIFAR-10 for 50 epochs with SGD, the baseline for GHN-2.

Source: Knyazev et al. 2021 (arXiv 2110.13100), section 4.
Command: python launch/train_network.py --config launch/configs/network_sgd50.py
    --architecture test/0 --deepnets DIR --workdir DIR
Hardware: not yet run.
Result: not yet run.
"""

import ml_collections

from ghn_jax.cli.config_dict import default_config
from ghn_jax.finetune.config import NetworkConfig


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = default_config(NetworkConfig)
    config.data.name = "cifar10"
    config.data.batch_size = 96
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.025
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 3e-4
    config.training.num_epochs = 50
    config.training.calibrate = False
    config.training.evaluate_every = 100
    config.training.checkpoint_every = 1000
    return config
