"""Swin Transformer (Liu et al., ICCV 2021) as in torchvision."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.models.layers import StochasticDepth


def _norm() -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)


def _relative_index(window: int) -> np.ndarray:
    """Return (w^2, w^2) rows of the bias table, given by the offset between two window pixels."""
    rows, columns = np.divmod(np.arange(window * window), window)
    offsets = [axis[:, None] - axis[None] + window - 1 for axis in (rows, columns)]
    return offsets[0] * (2 * window - 1) + offsets[1]


def _shift_mask(height: int, width: int, window: int, shift: tuple[int, int]) -> np.ndarray:
    """Return (windows, w^2, w^2): 0 if two pixels belong to one region of the image, else -100."""
    regions = np.zeros((height, width), np.int32)
    for axis, (size, offset) in enumerate(zip((height, width), shift, strict=True)):
        if offset:
            ends = np.searchsorted([size - window, size - offset], np.arange(size), side="right")
            regions += (3 if axis == 0 else 1) * (ends[:, None] if axis == 0 else ends[None])
    windows = regions.reshape(height // window, window, width // window, window)
    pixels = windows.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(pixels[:, None] != pixels[:, :, None], -100.0, 0.0).astype(np.float32)


class WindowAttention(nn.Module):
    """Attention within windows, which are shifted by half a window in every second block.

    Attributes:
        num_heads: Number of attention heads.
        window: Height and width of a window, in pixels.
        is_shifted: Whether the windows are shifted.
    """

    num_heads: int
    window: int
    is_shifted: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, full_height, full_width, size = x.shape
        window, heads = self.window, self.num_heads
        padding = [(-full) % window for full in (full_height, full_width)]
        x = jnp.pad(x, ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0)))
        _, height, width, _ = x.shape
        half = window // 2 if self.is_shifted else 0
        shift = (0 if window >= height else half, 0 if window >= width else half)
        if any(shift):
            x = jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2))
        x = x.reshape(batch, height // window, window, width // window, window, size)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window**2, size)  # (B windows, w^2, D)

        qkv = nn.Dense(3 * size, name="qkv")(x).reshape(*x.shape[:2], 3, heads, size // heads)
        query, key, value = (qkv[:, :, index] for index in range(3))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query * (size // heads) ** -0.5, key)
        init = nn.initializers.truncated_normal(0.02)
        table = self.param("position_bias", init, ((2 * window - 1) ** 2, heads))
        bias = table[_relative_index(window).reshape(-1)].reshape(window**2, window**2, heads)
        logits = logits + bias.transpose(2, 0, 1)[None]
        if any(shift):
            mask = _shift_mask(height, width, window, shift)
            logits = logits.reshape(batch, -1, *logits.shape[1:])
            logits = (logits + mask[None, :, None]).reshape(-1, *logits.shape[2:])
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)
        y = nn.Dense(size, name="proj")(y.reshape(*x.shape[:2], size))

        y = y.reshape(batch, height // window, width // window, window, window, size)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, size)
        if any(shift):
            y = jnp.roll(y, shift, axis=(1, 2))
        return y[:, :full_height, :full_width]


class SwinBlock(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    num_heads: int
    window: int
    is_shifted: bool
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        attention = WindowAttention(self.num_heads, self.window, self.is_shifted, name="attention")
        x = x + StochasticDepth(self.drop_rate)(attention(_norm()(x)), train)
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(_norm()(x)), approximate=False)
        return x + StochasticDepth(self.drop_rate)(nn.Dense(x.shape[-1])(y), train)


class SwinTransformer(nn.Module):
    """(B, S, S, C) images -> (B, K) logits.

    Attributes:
        stage_sizes: Number of blocks in each stage.
        num_heads: Number of attention heads in each stage.
        hidden_size: Width of the first stage, which doubles from stage to stage.
        window: Height and width of an attention window, in pixels.
        num_classes: Number of classes, K.
        drop_rate: Stochastic depth rate of the last block.
        small_images: Whether patches have 1 px instead of 4, and windows 4 px.
    """

    stage_sizes: tuple[int, ...]
    num_heads: tuple[int, ...]
    hidden_size: int
    window: int = 7
    num_classes: int = 1000
    drop_rate: float = 0.2
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        patch = (1, 1) if self.small_images else (4, 4)
        window = 4 if self.small_images else self.window
        x = _norm()(nn.Conv(self.hidden_size, patch, strides=patch, padding="VALID")(x))
        depth, done = sum(self.stage_sizes), 0
        for stage, num_blocks in enumerate(self.stage_sizes):
            if stage > 0:
                parts = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
                x = _norm()(jnp.concatenate(parts, axis=-1))  # (B, H / 2, W / 2, 4 C)
                x = nn.Dense(x.shape[-1] // 2, use_bias=False, name=f"merge{stage}")(x)
            for index in range(num_blocks):
                rate, name = self.drop_rate * done / max(depth - 1, 1), f"stage{stage}_block{index}"
                heads = self.num_heads[stage]
                x = SwinBlock(heads, window, index % 2 == 1, rate, name=name)(x, train)
                done += 1
        return nn.Dense(self.num_classes, name="head")(jnp.mean(_norm()(x), axis=(1, 2)))


def swin_t(**fields: Any) -> SwinTransformer:
    """Build Swin-T."""
    return SwinTransformer((2, 2, 6, 2), (3, 6, 12, 24), 96, **fields)
