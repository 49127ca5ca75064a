"""The study in docs/finetuning.md: ten images per class, three seeds, four learning rates.

Source: our own choice, based on Knyazev, arXiv 2207.10049, for networks small enough for a CPU.
Command: python launch/finetune.py --config launch/configs/finetune_study.py
    --ghn digits --architecture small_resnet,small_convnext,small_vit --workdir /tmp/study
Hardware: see docs/finetuning.md.
Result: see docs/finetuning.md.
"""

import ml_collections

from ghn_jax.cli.config_dict import default_config
from ghn_jax.finetune.config import FinetuneConfig


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = default_config(FinetuneConfig)
    config.data.name = "idx:/usr/share/datasets/fashion-mnist"
    config.data.image_size = 14
    config.data.batch_size = 32
    config.num_shots = 10
    config.num_seeds = 3

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 1e-2
    config.learning_rates = (3e-4, 1e-3, 3e-3, 1e-2)

    config.training.num_steps = 150
    config.training.evaluate_every = 25
    config.training.max_validation_images = 2000
    return config
