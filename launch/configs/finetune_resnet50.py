"""ResNet-50 with parameters from an ImageNet GHN, fine-tuned on 100 images per CIFAR-10 class.

Source: Knyazev, ICML 2022 workshop (arXiv 2207.10049), and the README of facebookresearch/ppuda:
    SGD 0.01, weight decay 0.01, beta 3e-5, orthogonal from layer 37, 300 epochs.
Command: python launch/finetune.py --config launch/configs/finetune_resnet50.py
    --ghn ghn2_imagenet.pt --architecture resnet50 --init ghn-orth --workdir DIR
Hardware: not yet run.
Result: not yet run.
"""

import ml_collections

from ghn_jax.cli.config_dict import default_config
from ghn_jax.finetune.config import FinetuneConfig


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = default_config(FinetuneConfig)
    config.data.name = "cifar10"
    config.data.batch_size = 96
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 0.01
    config.training.num_epochs = 300
    config.training.checkpoint_every = 500
    config.training.evaluate_every = 100
    config.num_shots = 100
    config.noise_beta = 3e-5
    config.first_layer = 37
    return config
