"""Vision transformers (Dosovitskiy et al., ICLR 2021) as in torchvision, and the DeepNets one."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.architectures import VIT
from ghn_jax.models.layers import layer_norm
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.targets.plan import lower


class EncoderBlock(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    num_heads: int
    mlp_size: int
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = nn.MultiHeadDotProductAttention(self.num_heads, name="attention")(layer_norm()(x))
        x = x + nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        y = nn.gelu(nn.Dense(self.mlp_size)(layer_norm()(x)), approximate=False)
        y = nn.Dense(x.shape[-1])(y)
        return x + nn.Dropout(self.dropout_rate, deterministic=not train)(y)


class VisionTransformer(nn.Module):
    """(B, S, S, C) images -> (B, K) logits, read from the class token.

    Attributes:
        num_layers: Number of encoder blocks.
        num_heads: Number of attention heads per block.
        hidden_size: Width of the tokens, D.
        mlp_size: Inner width of the MLPs.
        patch_size: Height and width of a patch, in pixels.
        num_classes: Number of classes, K.
        small_images: Whether patches have 4 px instead of `patch_size`.
    """

    num_layers: int
    num_heads: int
    hidden_size: int
    mlp_size: int
    patch_size: int = 16
    num_classes: int = 1000
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        batch, size = x.shape[0], self.hidden_size
        patch = (4 if self.small_images else self.patch_size,) * 2
        x = nn.Conv(size, patch, strides=patch, padding="VALID", name="patches")(x)
        x = x.reshape(batch, -1, size)  # (B, tokens, D)
        token = self.param("class_token", nn.initializers.zeros_init(), (1, 1, size))
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, size)), x], axis=1)
        init = nn.initializers.normal(0.02)
        x = x + self.param("position", init, (1, x.shape[1], size))
        for layer in range(self.num_layers):
            x = EncoderBlock(self.num_heads, self.mlp_size, name=f"layer{layer}")(x, train)
        return nn.Dense(self.num_classes, name="head")(layer_norm()(x)[:, 0])


def _make(
    name: str, num_layers: int, num_heads: int, hidden_size: int, mlp_size: int
) -> Callable[..., VisionTransformer]:
    make = functools.partial(VisionTransformer, num_layers, num_heads, hidden_size, mlp_size)
    make.__name__ = name  # type: ignore[attr-defined]
    return make


vit_b16 = _make("vit_b16", 12, 12, 768, 3072)
vit_l16 = _make("vit_l16", 24, 16, 1024, 4096)


def deepnets_vit(num_classes: int = 1000, image_size: int = 224) -> TargetNetwork:
    """Build the small ViT of 12 layers from the split `predefined` of DeepNets-1M.

    Args:
        num_classes: Number of classes, K.
        image_size: Height and width of the images, S, in pixels. Up to 64, patches have 3 px
            instead of 16.

    Returns:
        The module: (B, S, S, C) images -> (B, K) logits.
    """
    return TargetNetwork(lower(VIT, image_size, num_classes))
