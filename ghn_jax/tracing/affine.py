"""Nodes that only scale or shift data by parameters, without a norm.

Whether such a parameter is one to predict is seen only by what follows: frequencies enter a sine,
prototypes a distance, slopes an activation, and temperatures scale the outputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

ONLY_SINE = "only enters a sine"
ONLY_DISTANCE = "only enters a distance"
SCALES_OUTPUTS = "scales the outputs, such as logits"


class Affine(NamedTuple):
    """What a node does.

    Attributes:
        kind: "scale", "shift" or "difference" from a parameter.
        source: The node of what it scales or shifts.
        parameters: The parameters that it does so by.
    """

    kind: str
    source: int
    parameters: frozenset[int]


class AffineNodes:
    """The affine nodes of a graph that is being built."""

    def __init__(self) -> None:
        self._nodes: dict[int, Affine] = {}
        self._waves: dict[int, set[str]] = {}

    def add(self, node: int, kind: str, source: int, parameters: frozenset[int]) -> None:
        """Remember what a node does, see `Affine`."""
        self._nodes[node] = Affine(kind, source, parameters)

    def get(self, node: int) -> Affine | None:
        """Return what a node does, None if it is not affine."""
        return self._nodes.get(node)

    def behind(self, node: int, kind: str | None = None) -> Affine | None:
        """Return the affine nodes that end in a node as one.

        Args:
            node: The last one.
            kind: What at least one of them must do; None is anything.

        Returns:
            The node before them and all their parameters; None if there are no such nodes.
        """
        kinds, parameters = set(), frozenset[int]()
        while node in self._nodes:
            found = self._nodes[node]
            kinds.add(found.kind)
            node, parameters = found.source, parameters | found.parameters
        is_found = kind in kinds if kind else bool(kinds)
        return Affine(kind or "any", node, parameters) if is_found else None

    def add_wave(self, node: int, name: str) -> None:
        """Remember that a sine ("sin") or cosine ("cos") is taken of a node of raw inputs."""
        while node in self._nodes:
            self._waves.setdefault(node, set()).add(name)
            node = self._nodes[node].source
        self._waves.setdefault(node, set()).add(name)

    def is_frequency(self, node: int) -> bool:
        """Return whether both sine and cosine are taken of a node: Fourier features."""
        return self._waves.get(node) == {"sin", "cos"}

    def scales_of(self, outputs: Sequence[int]) -> dict[int, Affine]:
        """Return the scales that only shifts and other scales follow until an output."""
        scales = {}
        for node in outputs:
            while node in self._nodes:
                if self._nodes[node].kind == "scale":
                    scales[node] = self._nodes[node]
                node = self._nodes[node].source
        return scales
