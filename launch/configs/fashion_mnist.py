"""A GHN-2 on Fashion-MNIST at half its resolution, 14x14, from the files Debian ships.

Source: chosen by us, after `digits_long`.
Command: apt-get install dataset-fashion-mnist
    python launch/train.py --config launch/configs/fashion_mnist.py
    --workdir /tmp/ghn_fashion_mnist
Hardware: two cores of an AMD EPYC, shared with other jobs; training 17 minutes.
Result: seed 0, 100 unseen architectures of `test`, the first 1,000 test images, predicted
    parameters: 46.5 +- 0.4% (random 10.0%; 46.0 +- 0.4% on all 10,000 images); wide 38.9, deep
    43.5, dense 45.4, bnfree 12.0 (20 each).
"""

import ml_collections
from ghn_jax.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the config: `digits` but for what is set here."""
    config = digits.get_config()
    config.data.name = "idx:/usr/share/datasets/fashion-mnist"
    config.data.image_size = 14
    config.space.image_size = 14
    config.ghn.max_shape = (32, 32, 7, 7)
    config.optimizer.schedule = "cosine"
    config.optimizer.milestones = ()
    config.optimizer.warmup_steps = 100
    config.training.num_steps = 2400
    config.training.checkpoint_every = 200
    config.evaluation.max_images = 1000
    return config
