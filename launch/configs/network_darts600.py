"""A network trained on CIFAR-10 for 600 epochs, as DARTS evaluates networks.

Source: Liu et al. 2019 (arXiv 1806.09055), section 3.2 and appendix A: batch 96, cutout 16, drop
    path up to 0.2, auxiliary weight 0.4, gradient norm 5.
Command: python launch/train_network.py --config launch/configs/network_darts600.py
    --architecture ghn_jax.architectures:darts --workdir DIR
Hardware: not yet run.
Result: not yet run.
"""

import ml_collections
from ghn_jax.configs import network_sgd50


def get_config() -> ml_collections.ConfigDict:
    """Return the config, which is `network_sgd50` except for the values set here."""
    config = network_sgd50.get_config()
    config.training.num_epochs = 600
    config.training.cutout = 16
    config.training.drop_path = 0.2
    config.training.auxiliary_weight = 0.4
    config.training.evaluate_every = 4680  # ten epochs of 468 steps
    return config
