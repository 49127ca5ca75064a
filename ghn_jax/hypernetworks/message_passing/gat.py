"""Graph attention network (Velickovic et al., ICLR 2018), on jraph's layer.

h_v = relu(sum over u of a_uv W h_u) for each head, over the neighbours u of v in either direction
and v itself, with a_uv = softmax over u of leaky_relu(p . W h_u + q . W h_v).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from ghn_jax.configuration.variants import PositiveInt
from ghn_jax.graphs.batching import GraphBatch
from ghn_jax.hypernetworks.layers import linear, uniform_by_fan_in
from ghn_jax.hypernetworks.message_passing.registry import register_message_passing
from ghn_jax.hypernetworks.message_passing.undirected import make_undirected


@register_message_passing("gat")
class GAT(nn.Module):
    """Graph attention.

    Attributes:
        num_layers: how many steps away a node hears of others.
        num_heads: heads of each layer, a divisor of the width D.
    """

    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    needs_edges = True  # of the batch

    @nn.compact
    def __call__(self, nodes: jax.Array, batch: GraphBatch) -> jax.Array:
        """(B, N, D) -> (B, N, D)."""
        size = nodes.shape[-1]
        if size % self.num_heads:
            raise ValueError(f"num_heads is {self.num_heads}, expected a divisor of {size}")
        heads = (self.num_heads, size // self.num_heads)
        init = uniform_by_fan_in(heads[1])
        graph = make_undirected(batch.to_jraph(nodes))
        for index in range(self.num_layers):
            dense = linear(size, size, f"layer_{index + 1}")
            of_sender = self.param(f"sender_{index + 1}", init, heads)
            of_receiver = self.param(f"receiver_{index + 1}", init, heads)

            def attend(sent, received, edges, of_sender=of_sender, of_receiver=of_receiver):
                """(E, heads, D / heads) twice -> (E, heads, 1)."""
                del edges
                logits = jnp.einsum("ehd,hd->eh", sent, of_sender)
                logits = logits + jnp.einsum("ehd,hd->eh", received, of_receiver)
                return jnp.expand_dims(jax.nn.leaky_relu(logits, 0.2), 2)

            def query(nodes, dense=dense):
                return dense(nodes).reshape(-1, *heads)

            def update(nodes):
                return jax.nn.relu(nodes).reshape(-1, size)

            graph = jraph.GAT(query, attend, update)(graph)
        return batch.from_jraph(graph)
