"""Message passing, by which nodes learn about each other: node states -> node embeddings."""

# Importing a module registers it.
from ghn_jax.hypernetworks.message_passing.gat import GAT
from ghn_jax.hypernetworks.message_passing.gated_gnn import GatedGNN
from ghn_jax.hypernetworks.message_passing.gcn import GCN
from ghn_jax.hypernetworks.message_passing.mlp import NodeMLP
from ghn_jax.hypernetworks.message_passing.registry import (
    MESSAGE_PASSING,
    MessagePassingConfig,
    register_message_passing,
)

__all__ = [
    "GAT",
    "GCN",
    "MESSAGE_PASSING",
    "GatedGNN",
    "MessagePassingConfig",
    "NodeMLP",
    "register_message_passing",
]
