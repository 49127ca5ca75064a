"""No messages: an MLP on each node alone, the baseline that ignores edges (GHN-2's "MLP")."""

import flax.linen as nn
import jax

from ghn_jax.graphs.batching import GraphBatch
from ghn_jax.hypernetworks.layers import linear
from ghn_jax.hypernetworks.message_passing.registry import register_message_passing
from ghn_jax.hypernetworks.official_tensors import TensorLayout, linear_tensors


@register_message_passing("mlp")
class NodeMLP(nn.Module):
    """An MLP on each node alone, without messages: linear, relu, linear, relu."""

    parameter_scope = official_name = "mlp"

    @nn.compact
    def __call__(self, nodes: jax.Array, batch: GraphBatch) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        del batch
        size = nodes.shape[-1]
        nodes = jax.nn.relu(linear(size, size, "layer_1")(nodes))
        return jax.nn.relu(linear(size, size, "layer_2")(nodes))

    @nn.nowrap
    def official_tensors(self, hidden_size: int) -> dict[str, TensorLayout]:
        """See `hypernetworks.official_tensors`."""
        return {
            **linear_tensors("layer_1/", "gnn.fc.0", hidden_size, hidden_size),
            **linear_tensors("layer_2/", "gnn.fc.2", hidden_size, hidden_size),
        }
