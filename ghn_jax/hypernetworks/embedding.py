"""Node embeddings before message passing: what a node computes, and its parameter's shape.

(B, N) primitives and (B, N, 4) shape rows -> (B, N, D): the primitive's embedding plus the
concatenation of four embeddings of width D / 4, for output channels, input channels, kernel height
and kernel width (docs/method.md, 'Node embedding').
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.graphs.primitives import PRIMITIVES


class ShapeVocabulary:
    """Maps sizes to rows of the shape embeddings.

    A size between two rows takes the nearest one, and the lower one on a tie. 4 to 7 channels take
    the row for 8, 2x2 kernels the row for 3x3, and sizes beyond the end the last row. Nodes without
    a shape take an additional row.

    Args:
        num_classes: Number of classes, which has a row of its own among the channels.
        max_kernel: Size S of the largest kernel in a tile.
    """

    def __init__(self, num_classes: int, max_kernel: int) -> None:
        steps = [*range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)]
        self.channels = np.unique([1, 3, num_classes, *steps])
        self.spatial = np.unique([*range(1, max(12, max_kernel), 2), 14, 16])
        self._channel_rows = _nearest_rows(self.channels)
        self._channel_rows[4:8] = self._channel_rows[8]
        self._spatial_rows = _nearest_rows(self.spatial)
        self._spatial_rows[2] = self._spatial_rows[3]

    def lookup(self, shapes: np.ndarray) -> np.ndarray:
        """Look up the rows for parameter shapes.

        Args:
            shapes: (..., 4) int, (out, in, height, width); all zeros where there is no parameter.

        Returns:
            (..., 4) int32, two rows of the channel embedding and two of the spatial one.

        Raises:
            ValueError: If a shape has negative numbers, or mixes zeros with positive ones.
        """
        shapes = np.asarray(shapes)
        if shapes.shape[-1:] != (4,):
            raise ValueError(f"shapes has shape {shapes.shape}, expected (..., 4)")
        is_wrong = (shapes < 0).any(-1) | ((shapes == 0).any(-1) & (shapes != 0).any(-1))
        if is_wrong.any():
            raise ValueError(
                f"shapes holds {tuple(shapes[is_wrong][0].tolist())}, expected (out, in, height,"
                " width) all positive, or all zero"
            )
        channels = self._channel_rows[np.minimum(shapes[..., :2], len(self._channel_rows) - 1)]
        spatial = self._spatial_rows[np.minimum(shapes[..., 2:], len(self._spatial_rows) - 1)]
        return np.concatenate([channels, spatial], axis=-1)


def _nearest_rows(sizes: np.ndarray) -> np.ndarray:
    # The row for every size up to the last; size 0 means "no shape" and takes the row after those.
    distance = np.abs(np.arange(sizes[-1] + 1)[:, None] - sizes[None, :])
    rows = np.argmin(distance, axis=1).astype(np.int32)
    rows[0] = len(sizes)
    return rows


@functools.cache
def shape_vocabulary(num_classes: int, max_kernel: int) -> ShapeVocabulary:
    """Return a hypernetwork's vocabulary, which is made once."""
    return ShapeVocabulary(num_classes, max_kernel)


class NodeEmbedding(nn.Module):
    """Embeds the primitive and the parameter shape of every node.

    Attributes:
        hidden_size: Width D of the embeddings, a multiple of 4.
        num_classes: See `ShapeVocabulary`.
        max_kernel: See `ShapeVocabulary`.
    """

    hidden_size: int
    num_classes: int
    max_kernel: int

    @nn.compact
    def __call__(
        self, primitive: jax.Array | np.ndarray, shape_index: jax.Array | np.ndarray
    ) -> jax.Array:
        """(B, N) int32, (B, N, 4) int32 -> (B, N, D)."""
        vocabulary = shape_vocabulary(self.num_classes, self.max_kernel)
        init, quarter = nn.initializers.normal(1.0), self.hidden_size // 4
        primitives = self.param("primitive", init, (len(PRIMITIVES), self.hidden_size), jnp.float32)
        channel = self.param("channel", init, (len(vocabulary.channels) + 1, quarter), jnp.float32)
        spatial = self.param("spatial", init, (len(vocabulary.spatial) + 1, quarter), jnp.float32)
        shape = jnp.concatenate(
            [
                channel[shape_index[..., 0]],
                channel[shape_index[..., 1]],
                spatial[shape_index[..., 2]],
                spatial[shape_index[..., 3]],
            ],
            axis=-1,
        )  # (B, N, D)
        return primitives[primitive] + shape
