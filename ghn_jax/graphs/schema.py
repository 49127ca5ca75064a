"""What a graph consists of: nodes for operations, and the parameter tensors that belong to them.

Every description of a network, be it a plan of blocks, a trace of its computation or a file, uses
these terms.
"""

import dataclasses
from typing import NamedTuple

NO_SHAPE = (0, 0, 0, 0)
# Roles decide how a tensor is cut from a tile and how it is normalised.
ROLES = (
    "kernel",
    "depthwise",
    "embedding",
    "classifier_kernel",
    "classifier_bias",
    "scale",
    "bias",
    "position",
)


@dataclasses.dataclass(frozen=True)
class ParameterTensor:
    """One parameter tensor of a target network.

    Attributes:
        path: The tensor's path in the target's parameter tree.
        shape: The shape in Flax layout: convolutions (kh, kw, in, out), depthwise (kh, kw, 1, C),
            dense (in, out), embeddings (rows, width), vectors (C,), positional encodings
            (1, s, s, C).
        node: Index of the graph node that the tensor belongs to.
        role: The tensor's role, one of `ROLES`.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    node: int
    role: str


class TracedNode(NamedTuple):
    """A node of the network's graph: an operation, its parameter's shape and its inputs."""

    primitive: str
    shape: tuple[int, int, int, int]  # (out, in, kh, kw) as a GHN's shape embedding reads it
    parents: tuple[int, ...]
