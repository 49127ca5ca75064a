"""Graph attention network (Velickovic et al., ICLR 2018), built on jraph's layer.

For each head, h_v = relu(sum over u of a_uv W h_u), where u runs over v itself and its neighbours
in either direction, and a_uv = softmax over u of leaky_relu(p . W h_u + q . W h_v).
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
    """Graph attention network.

    Attributes:
        num_layers: number of layers; a node sees others up to that many edges away.
        num_heads: number of attention heads in each layer, a divisor of the width D.
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

            def attend(
                sent: jax.Array,
                received: jax.Array,
                edges: None,
                of_sender: jax.Array = of_sender,
                of_receiver: jax.Array = of_receiver,
            ) -> jax.Array:
                """(E, heads, D / heads) twice -> (E, heads, 1)."""
                del edges
                logits = jnp.einsum("ehd,hd->eh", sent, of_sender)
                logits = logits + jnp.einsum("ehd,hd->eh", received, of_receiver)
                return jnp.expand_dims(jax.nn.leaky_relu(logits, 0.2), 2)

            def query(nodes: jax.Array, dense: nn.Module = dense) -> jax.Array:
                return dense(nodes).reshape(-1, *heads)

            def update(nodes: jax.Array) -> jax.Array:
                return jax.nn.relu(nodes).reshape(-1, size)

            graph = jraph.GAT(query, attend, update)(graph)
        return batch.from_jraph(graph)
