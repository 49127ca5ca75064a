"""The MLP hypernetwork on CIFAR-10: GHN-2 without message passing.

Source: Knyazev et al., NeurIPS 2021 (arXiv 2110.13100), section 5, and the published code.
Command: python -m launch.train --config launch/configs/cifar10_mlp.py
    --workdir runs/cifar10_mlp
Hardware: one GPU; not yet timed here.
Result: not yet run. Published: 42.2 % mean top-1 on the test split.
"""

import ml_collections
from ghn_jax.configs import cifar10_ghn2


def get_config() -> ml_collections.ConfigDict:
    """Return the config, which is `cifar10_ghn2` except for the values set here."""
    config = cifar10_ghn2.get_config()
    config.ghn.message_passing = "mlp"
    return config
