"""A network trained on scikit-learn's digits: seconds on a laptop.

Source: chosen by us.
Command: python launch/train_network.py --config launch/configs/network_digits.py
    --architecture small_resnet --ghn digits --workdir /tmp/network
Hardware: two cores of an AMD EPYC, shared with other jobs; 80 seconds of training.
Result: seed 0: 98.3% on validation and 98.1% on test images after 260 iterations; parameters that
    the packaged GHN predicts reach 33.9% on validation images, as 13 of these iterations do.
"""

import ml_collections

from ghn_jax.cli.config_dict import default_config
from ghn_jax.finetune.config import NetworkConfig


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = default_config(NetworkConfig)
    config.data.name = "digits"
    config.data.batch_size = 96
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.025
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 3e-4
    config.training.num_epochs = 20
    config.training.evaluate_every = 5
    return config
