"""`digits`, trained longer.

Source: our own choice, as in `digits`.
Command: python launch/train.py --config launch/configs/digits_long.py
    --workdir /tmp/ghn_digits_long
Hardware: one core of an AMD EPYC, shared with other jobs; half an hour of processor time.
Result: with seed 0, predicted parameters reach 93.7 +- 0.2% top-1 on the test images, on 100 unseen
    architectures of `test` (random parameters 9.8%); wide 59.0, deep 91.2, dense 93.8, bnfree 84.4
    (20 architectures each). `ghn_jax.load("digits")` loads this GHN.
"""

import ml_collections
from ghn_jax.configs import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the config, which is `digits` except for the values set here."""
    config = digits.get_config()
    config.ghn.max_shape = (32, 32, 7, 7)
    config.curriculum.num_cells = ((0, 1, 3), (2000, 2, 6), (6000, 4, 18))
    config.training.num_steps = 6000
    config.training.checkpoint_every = 250
    config.training.evaluate_every = 500
    return config
