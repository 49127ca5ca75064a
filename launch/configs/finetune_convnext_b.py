"""ConvNeXt-B with parameters from an ImageNet GHN, fine-tuned on 100 images per CIFAR-10 class.

Source: Knyazev, ICML 2022 workshop (arXiv 2207.10049), and the README of facebookresearch/ppuda:
    AdamW 1e-3, weight decay 0.1, batch 48, beta 3e-5, orthogonal from layer 94, 300 epochs.
Command: python launch/finetune.py --config launch/configs/finetune_convnext_b.py
    --ghn ghn2_imagenet.pt --architecture convnext_b --init ghn-orth --workdir DIR
Hardware: not yet run.
Result: not yet run.
"""

import ml_collections
from ghn_jax.configs import finetune_resnet50


def get_config() -> ml_collections.ConfigDict:
    """Return the config, which is `finetune_resnet50` except for the values set here."""
    config = finetune_resnet50.get_config()
    config.data.batch_size = 48
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.1
    config.first_layer = 94
    return config
