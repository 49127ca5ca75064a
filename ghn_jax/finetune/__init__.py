"""Fine-tuning: from predicted parameters to a trained network."""

from ghn_jax.finetune.layers import Layer, layer_order
from ghn_jax.finetune.postprocessing import Postprocessed, postprocess

__all__ = ["Layer", "Postprocessed", "layer_order", "postprocess"]
