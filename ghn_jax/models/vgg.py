"""VGG-16 with batch norm (Simonyan and Zisserman, ICLR 2015) as in torchvision."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.models.layers import ModuleWithOperations, batch_norm, conv, max_pool


class VGG(ModuleWithOperations):
    """(B, S, S, C) images -> (B, K) logits.

    Attributes:
        stages: Widths of the convolutions before each pool.
        num_classes: Number of classes, K.
        dropout_rate: Dropout rate in the head.
        small_images: Whether to leave out the two wide linear layers, for 32 px.
    """

    stages: tuple[tuple[int, ...], ...]
    num_classes: int = 1000
    dropout_rate: float = 0.5
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for widths in self.stages:
            for width in widths:
                x = nn.relu(batch_norm(train, self.operations)(conv(width, 3, bias=True)(x)))
            x = max_pool(x, 2, 2)
        # Channels first, as PyTorch flattens them; 7x7 pixels are left at 224 px.
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
        if not self.small_images:
            for _ in range(2):
                x = nn.relu(nn.Dense(4096)(x))
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


def vgg16_bn(**fields: Any) -> VGG:
    """Build VGG-16 with batch norm."""
    return VGG(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3), **fields)
