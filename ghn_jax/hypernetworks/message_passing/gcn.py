"""Graph convolutional network (Kipf & Welling, ICLR 2017), built on jraph's layer.

Each layer computes h_v = relu(sum over u of W h_u / sqrt(deg_u deg_v)), where u runs over v itself
and its neighbours in either direction.
"""

import flax.linen as nn
import jax
import jraph

from ghn_jax.configuration.variants import PositiveInt
from ghn_jax.graphs.batching import GraphBatch
from ghn_jax.hypernetworks.layers import linear
from ghn_jax.hypernetworks.message_passing.registry import register_message_passing
from ghn_jax.hypernetworks.message_passing.undirected import make_undirected


@register_message_passing("gcn")
class GCN(nn.Module):
    """Graph convolutional network.

    Attributes:
        num_layers: number of layers; a node sees others up to that many edges away.
    """

    num_layers: PositiveInt = 2
    needs_edges = True  # of the batch

    @nn.compact
    def __call__(self, nodes: jax.Array, batch: GraphBatch) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        size = nodes.shape[-1]
        graph = make_undirected(batch.to_jraph(nodes))
        for index in range(self.num_layers):
            layer = jraph.GraphConvolution(linear(size, size, f"layer_{index + 1}"))
            with jax.numpy_dtype_promotion("standard"):  # jraph mixes floats with int edge counts
                graph = layer(graph)
            graph = graph._replace(nodes=jax.nn.relu(graph.nodes))
        return batch.from_jraph(graph)
