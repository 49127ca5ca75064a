"""Gated graph network: sequential message passing along a network's graph, forward then backward.

For each node v in topological order, with its incoming edges (or, on the way back, in reverse order
with its outgoing edges):
    m_v = sum over d=1 of MLP(h_u) + sum over virtual edges of MLP_virtual(h_u) / d_uv
    h_v = GRU(m_v, h_v)
where the h_u were already updated in this pass (GHN-1 eq. 3, GHN-2 eq. 4).
"""

from collections.abc import Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ghn_jax.configuration.variants import PositiveInt
from ghn_jax.graphs.batching import GraphBatch
from ghn_jax.hypernetworks.layers import uniform_by_fan_in
from ghn_jax.hypernetworks.message_passing.node_update import Params, gru_cell, send_message
from ghn_jax.hypernetworks.message_passing.registry import register_message_passing
from ghn_jax.hypernetworks.message_passing.sweep import Sweep, sweep
from ghn_jax.hypernetworks.official_tensors import TensorLayout, linear_tensors, reordered, same


@register_message_passing("gated_gnn")
class GatedGNN(nn.Module):
    """Gated graph network; every round of message passing uses the same parameters.

    Attributes:
        virtual_edges: Longest distance over which an edge passes messages; 1 means the network's
            own edges only.
        nodes_at_once: Number of consecutive nodes visited together; no edge joins two of them.
        num_rounds: number of rounds T, each a forward and a backward pass.
        forward_only: whether to leave out the backward passes.
        reverse_only: Whether to use the sweep with a hand-written adjoint; see `Hypernetwork`.
    """

    virtual_edges: int
    nodes_at_once: int = 1
    num_rounds: PositiveInt = 1
    forward_only: bool = False
    reverse_only: bool = False

    parameter_scope = "gnn"
    official_name = "gatedgnn"

    @nn.compact
    def __call__(self, nodes: jax.Array, batch: GraphBatch) -> jax.Array:
        """(B, N, D) in topological order -> (B, N, D); padding keeps its state."""
        size = nodes.shape[-1]
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
        places = 1 + jnp.arange(nodes.shape[1], dtype=jnp.int32)
        num_visited = jnp.max(jnp.where(batch.node_mask, places, 0))  # time follows it, not N
        passes = (False,) if self.forward_only else (False, True)
        for is_reverse in passes * self.num_rounds:
            if self.reverse_only:
                kind = Sweep(self.virtual_edges, is_reverse, self.nodes_at_once)
                distance = jnp.asarray(batch.distance)
                nodes = sweep(kind, mlps, gru, nodes, distance, num_visited)
            else:
                nodes = plain_sweep(self.virtual_edges, is_reverse, mlps, gru, nodes, batch)
        return nodes

    @nn.nowrap
    def for_programs(self, nodes_at_once: int) -> "GatedGNN":
        """Return the variant that shared programs run; see `Hypernetwork.for_programs`."""
        return self.clone(nodes_at_once=nodes_at_once, reverse_only=True)

    @nn.nowrap
    def official_tensors(self, hidden_size: int) -> dict[str, TensorLayout]:
        """See `hypernetworks.official_tensors`; ValueError if the original has no such GNN."""
        if self.num_rounds != 1 or self.forward_only:
            raise ValueError(
                f"message_passing has num_rounds {self.num_rounds} and forward_only"
                f" {self.forward_only}, expected 1 and False: official checkpoints have no others"
            )
        size, has_virtual = hidden_size, self.virtual_edges > 1
        width = size // 2 if has_virtual else size
        layouts: dict[str, TensorLayout] = {}
        for mlp, official in (("mlp", "mlp"), ("mlp_virtual", "mlp_ve"))[: 1 + has_virtual]:
            for layer, index, sizes in ((1, 0, (size, width)), (2, 2, (width, size))):
                linear = linear_tensors("", f"gnn.{official}.fc.{index}", *sizes)
                layouts |= {f"{mlp}_{part}_{layer}": layout for part, layout in linear.items()}
        for side, suffix in (("message", "ih"), ("state", "hh")):
            kernel = f"gnn.gru.weight_{suffix}"
            layouts[f"gru_{side}_kernel"] = reordered(kernel, (3 * size, size), (1, 0))
            layouts[f"gru_{side}_bias"] = same(f"gnn.gru.bias_{suffix}", 3 * size)
        return layouts

    def _mlp(self, name: str, size: int, hidden_size: int) -> dict[str, jax.Array]:
        first, second = uniform_by_fan_in(size), uniform_by_fan_in(hidden_size)
        return {
            "kernel_1": self.param(f"{name}_kernel_1", first, (size, hidden_size)),
            "bias_1": self.param(f"{name}_bias_1", first, (hidden_size,)),
            "kernel_2": self.param(f"{name}_kernel_2", second, (hidden_size, size)),
            "bias_2": self.param(f"{name}_bias_2", second, (size,)),
        }


def plain_sweep(
    virtual_edges: int,
    is_reverse: bool,
    mlps: Sequence[Params],
    gru: Params,
    nodes: jax.Array,
    batch: GraphBatch,
) -> jax.Array:
    """Visit the nodes one by one, exactly as the equation above says; `sweep` does so faster.

    Every JAX transformation works on it. Its gradient keeps the states of all nodes at each step,
    N^2 D numbers.
    """
    is_node = jnp.expand_dims(batch.node_mask, 2)
    distance = jnp.swapaxes(batch.distance, 1, 2) if is_reverse else jnp.asarray(batch.distance)
    weights = [(distance == 1).astype(nodes.dtype)]  # (B, N, N) [receiver, sender]
    if virtual_edges > 1:
        is_virtual = (distance > 0) & (distance <= virtual_edges)
        weights.append(jnp.where(is_virtual, 1 / jnp.maximum(distance, 1).astype(nodes.dtype), 0))

    def visit(
        carry: tuple[jax.Array, list[jax.Array]], v: jax.Array
    ) -> tuple[tuple[jax.Array, list[jax.Array]], None]:
        h, sent = carry  # the states, and each MLP's messages from the nodes visited so far
        pairs = zip(weights, sent, strict=True)
        message = sum(jnp.einsum("bu,bud->bd", weight[:, v], s) for weight, s in pairs)
        next_state = gru_cell(gru, cast(jax.Array, message), h[:, v])
        updated = jnp.where(is_node[:, v], next_state, h[:, v])
        messages = [jnp.where(is_node[:, v], send_message(mlp, updated), 0) for mlp in mlps]
        sent = [s.at[:, v].set(m) for s, m in zip(sent, messages, strict=True)]
        return (h.at[:, v].set(updated), sent), None

    order = jnp.arange(nodes.shape[1], dtype=jnp.int32)
    start = (nodes, [jnp.zeros_like(nodes) for _ in mlps])
    (h, _), _ = lax.scan(visit, start, order, reverse=is_reverse)
    return h
