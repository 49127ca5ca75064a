"""VGG-16 with batch norm (Simonyan and Zisserman, ICLR 2015) as in torchvision."""

import flax.linen as nn
import jax.numpy as jnp

from ghn_jax.models.layers import ModuleWithOperations, batch_norm, conv, max_pool


class VGG(ModuleWithOperations):
    """(B, S, S, 3) images -> (B, K) logits.

    Attributes:
        stages: Widths of the convolutions before each pool.
        num_classes: K.
        dropout_rate: Of the head.
        small_images: Without the two wide linear layers, for 32 px.
    """

    stages: tuple[tuple[int, ...], ...]
    num_classes: int = 1000
    dropout_rate: float = 0.5
    small_images: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        for widths in self.stages:
            for width in widths:
                x = nn.relu(batch_norm(train, self.operations)(conv(width, 3, bias=True)(x)))
            x = max_pool(x, 2, 2)
        # PyTorch flattens channels first, from 7x7 pixels at 224 px.
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
        if not self.small_images:
            for _ in range(2):
                x = nn.relu(nn.Dense(4096)(x))
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


def vgg16_bn(**fields) -> VGG:
    """VGG-16 with batch norm."""
    return VGG(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3), **fields)
