"""No messages: an MLP of every node alone, the baseline that is blind to edges (GHN-2's "MLP")."""

import flax.linen as nn
import jax

from ghn_jax.graphs.batching import GraphBatch
from ghn_jax.hypernetworks.layers import linear


class NodeMLP(nn.Module):
    """linear, relu, linear, relu on every node."""

    @nn.compact
    def __call__(self, nodes: jax.Array, batch: GraphBatch) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        del batch
        size = nodes.shape[-1]
        nodes = jax.nn.relu(linear(size, size, "layer_1")(nodes))
        return jax.nn.relu(linear(size, size, "layer_2")(nodes))
