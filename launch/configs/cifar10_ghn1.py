"""GHN-1 on CIFAR-10: no virtual edges, no normalisation, one architecture per step.

Source: GHN-1 as trained by Knyazev et al., NeurIPS 2021 (arXiv 2110.13100); the method is by
    Zhang et al., ICLR 2019 (arXiv 1810.05749).
Command: python -m launch.train --config launch/configs/cifar10_ghn1.py
    --workdir runs/cifar10_ghn1
Hardware: one GPU; not yet timed here.
Result: not yet run. Published: 51.4 % mean top-1 on the test split.
"""

import ml_collections
from ghn_jax.configs import cifar10_ghn2


def get_config() -> ml_collections.ConfigDict:
    """Return the config, which is `cifar10_ghn2` except for the values set here."""
    config = cifar10_ghn2.get_config()
    config.ghn.virtual_edges = 1
    config.ghn.layer_norm = False
    config.ghn.normalize_parameters = False
    config.training.meta_batch_size = 1
    return config
