"""Gated graph network: sequential message passing along a network's graph, forward, then backward.

For node v in topological order, with incoming edges (outgoing ones on the way back):
    m_v = sum over d=1 of MLP(h_u) + sum over virtual edges of MLP_virtual(h_u) / d_uv
    h_v = GRU(m_v, h_v)
using the h_u already updated in this pass (GHN-1 eq. 3, GHN-2 eq. 4).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ghn_jax.hypernetworks.layers import uniform_by_fan_in
from ghn_jax.hypernetworks.message_passing.sweep import Sweep, sweep


class GatedGNN(nn.Module):
    """One round of message passing over B graphs in parallel.

    Attributes:
        virtual_edges: Longest distance of an edge that passes messages; 1 means the network's own.
        nodes_at_once: How many consecutive nodes are visited together; no edge joins two of them.
    """

    virtual_edges: int
    nodes_at_once: int = 1

    @nn.compact
    def __call__(
        self, x: jax.Array, distance: jax.Array, num_visited: jax.Array | int | None = None
    ) -> jax.Array:
        """Update node states.

        Args:
            x: (B, N, D) states, nodes in topological order.
            distance: (B, N, N) uint8 [receiver, sender], 0 where there is no edge.
            num_visited: () int32, how many of the first nodes are visited, the others being
                padding: time follows this number, not N. None visits all.

        Returns:
            (B, N, D); padding keeps its state.
        """
        size = x.shape[-1]
        has_virtual = self.virtual_edges > 1
        mlps = [self._mlp("mlp", size, size // 2 if has_virtual else size)]
        if has_virtual:
            mlps.append(self._mlp("mlp_virtual", size, size // 2))
        init = uniform_by_fan_in(size)
        gru = {
            name: self.param(f"gru_{name}", init, shape)
            for name, shape in {
                "message_kernel": (size, 3 * size),
                "state_kernel": (size, 3 * size),
                "message_bias": (3 * size,),
                "state_bias": (3 * size,),
            }.items()
        }
        num_nodes = x.shape[1]
        num_visited = jnp.asarray(num_nodes if num_visited is None else num_visited, jnp.int32)
        for is_reverse in (False, True):
            kind = Sweep(self.virtual_edges, is_reverse, self.nodes_at_once)
            x = sweep(kind, mlps, gru, x, distance, num_visited)
        return x

    def _mlp(self, name: str, size: int, hidden_size: int) -> dict[str, jax.Array]:
        first, second = uniform_by_fan_in(size), uniform_by_fan_in(hidden_size)
        return {
            "kernel_1": self.param(f"{name}_kernel_1", first, (size, hidden_size)),
            "bias_1": self.param(f"{name}_bias_1", first, (hidden_size,)),
            "kernel_2": self.param(f"{name}_kernel_2", second, (hidden_size, size)),
            "bias_2": self.param(f"{name}_bias_2", second, (size,)),
        }
