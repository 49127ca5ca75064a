"""The target network as one Flax module: the blocks of a plan, composed."""

import flax.linen as nn
import jax

from ghn_jax.targets.blocks import BatchNorm
from ghn_jax.targets.plan import NUM_IMAGE_CHANNELS, Plan


class TargetNetwork(nn.Module):
    """A network of a plan: (B, S, S, 3) images -> (B, num_classes) logits.

    Batch norm uses batch statistics unless `use_running_average`; its running averages are the
    collection `batch_stats`, updated where it is mutable. Dropout in the head acts where a `dropout`
    random key is given.

    Attributes:
        plan: The lowered architecture.
    """

    plan: Plan

    @nn.compact
    def __call__(self, images: jax.Array, use_running_average: bool = False) -> jax.Array:
        expected = (self.plan.image_size, self.plan.image_size, NUM_IMAGE_CHANNELS)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images have shape {images.shape}, expected (batch, {', '.join(map(str, expected))})"
                ": NHWC, of the size the architecture was lowered for"
            )
        values = [images]
        for call in self.plan.calls:
            block = call.block.clone(name=call.name, parent=self)
            inputs = [values[index] for index in call.inputs]
            if isinstance(block, BatchNorm):
                values.append(block(*inputs, use_running_average=use_running_average))
            else:
                values.append(block(*inputs))
        return values[-1]
