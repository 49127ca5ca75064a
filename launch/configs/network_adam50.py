"""A network trained on CIFAR-10 for 50 epochs with Adam, the other baseline for GHN-2.

Source: Knyazev et al. 2021 (arXiv 2110.13100), section 4; learning rate and decay are the GHN's.
Command: python launch/train_network.py --config launch/configs/network_adam50.py
    --architecture test/0 --deepnets DIR --workdir DIR
Hardware: not yet run.
Result: not yet run.
"""

import ml_collections
from ghn_jax.configs import network_sgd50


def get_config() -> ml_collections.ConfigDict:
    """Return the config, which is `network_sgd50` except for the values set here."""
    config = network_sgd50.get_config()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-5
    return config
