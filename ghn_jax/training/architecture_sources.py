"""Where training's architectures come from: drawn from a space, or read from DeepNets-1M files.

In: an index, 0, 1, ... without end. Out: the architecture's plan and graph. An index means the same
in every process and in a run that resumes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np

from ghn_jax.architectures import Architecture
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks.config import GHNConfig
from ghn_jax.sampling import SpaceConfig, sample_architecture
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import Plan, lower


class ArchitectureSource(Protocol):
    """An endless sequence of architectures. It can be sent to other processes."""

    def draw(self, index: int) -> Architecture:
        """Return an architecture."""
        ...

    def lower(self, architecture: Architecture) -> Plan:
        """Lower an architecture of the source."""
        ...

    def graph(self, index: int, plan: Plan) -> ArchGraph:
        """Return the graph of an architecture that was drawn and lowered."""
        ...


@dataclasses.dataclass(frozen=True)
class SampledArchitectures:
    """Draws every architecture from a space: no two alike, none stored.

    Attributes:
        space: The distribution.
        seed: Of the stream.
        virtual_edges: Longest distance of an edge in the graphs.
    """

    space: SpaceConfig
    seed: int
    virtual_edges: int

    def draw(self, index: int) -> Architecture:
        """Draw an architecture."""
        return sample_architecture(self.space, self.seed, index)

    def lower(self, architecture: Architecture) -> Plan:
        """Lower an architecture for the images and classes of the space."""
        return lower(architecture, *self.space.input_sizes)

    def graph(self, index: int, plan: Plan) -> ArchGraph:
        """Build the graph of a plan."""
        del index
        return build_graph(plan, self.virtual_edges)


class StoredArchitectures:
    """Architectures and graphs of published or generated files, in a new order each epoch.

    Args:
        directory: Holds the files of the space's split.
        space: Its split, images and classes; it may restrict nothing, since files are what they
            are.
        seed: Of the orders, and of the widths, which files of training do not have.
        virtual_edges: Longest distance of an edge in the graphs.

    Raises:
        ValueError: If there are no such files, or the space restricts something.
    """

    def __init__(self, directory: str, space: SpaceConfig, seed: int, virtual_edges: int) -> None:
        default = SpaceConfig()
        for field in dataclasses.fields(SpaceConfig):
            value, expected = (getattr(s, field.name) for s in (space, default))
            if (
                field.name not in ("split", "image_size", "num_classes", "num_channels")
                and value != expected
            ):
                raise ValueError(
                    f"space.{field.name} is {value!r}, expected {expected!r} with architectures ="
                    f" {directory!r}: files are not restricted"
                )
        self._nets = DeepNets1M(directory, space.split, space.image_size, seed)
        if not len(self._nets):
            raise ValueError(f"architectures is {directory!r}, expected files with networks")
        self._space = space
        self._seed = seed
        self._virtual_edges = virtual_edges

    def draw(self, index: int) -> Architecture:
        """Read an architecture; a width is drawn anew each epoch."""
        epoch, number = self._locate(index)
        return self._nets.architecture(number, draw=epoch)

    def lower(self, architecture: Architecture) -> Plan:
        """Lower an architecture for the images and classes of the space."""
        return lower(architecture, *self._space.input_sizes)

    def graph(self, index: int, plan: Plan) -> ArchGraph:
        """Read the graph of an architecture."""
        assert isinstance(plan.architecture, Architecture)
        return self._nets.graph(
            self._locate(index)[1],
            self._space.num_classes,
            self._virtual_edges,
            architecture=plan.architecture,
        )

    def _locate(self, index: int) -> tuple[int, int]:
        epoch, position = divmod(index, len(self._nets))
        return epoch, int(_order(len(self._nets), self._seed, epoch)[position])


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch,))
    return np.random.default_rng(sequence).permutation(size)


def create_source(
    directory: str | None, space: SpaceConfig, seed: int, ghn: GHNConfig
) -> ArchitectureSource:
    """Choose the source.

    Args:
        directory: Of files; None draws from the space.
        space: The distribution, or the split of the files.
        seed: Of the sequence.
        ghn: Of the hypernetwork, whose virtual edges the graphs have.

    Returns:
        The source.
    """
    if directory is None:
        return SampledArchitectures(space, seed, ghn.virtual_edges)
    return StoredArchitectures(directory, space, seed, ghn.virtual_edges)
