"""Sources of architectures for training: drawn from a space, or read from DeepNets-1M files.

A source maps every index 0, 1, ..., without end, to an architecture, its plan and its graph. An
index means the same architecture in every process and in a run that resumes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np

from ghn_jax.architectures import Architecture
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.graphs import ArchGraph
from ghn_jax.sampling import CurriculumConfig, SpaceConfig, sample_architecture
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import Plan, lower
from ghn_jax.training.config import ExperimentConfig


class ArchitectureSource(Protocol):
    """An endless sequence of architectures, which can be sent to other processes."""

    def draw(self, index: int) -> Architecture:
        """Return the architecture at an index."""
        ...

    def lower(self, architecture: Architecture) -> Plan:
        """Lower an architecture of the source."""
        ...

    def graph(self, index: int, plan: Plan) -> ArchGraph:
        """Return the graph of an architecture that was drawn and lowered."""
        ...


@dataclasses.dataclass(frozen=True)
class SampledArchitectures:
    """Draws every architecture from a space; no two are alike, and none is stored.

    Attributes:
        space: The distribution of architectures.
        seed: Seed of the stream of architectures.
        virtual_edges: Longest distance of an edge in the graphs.
        curriculum: How the distribution changes with the step.
        num_per_step: Number of architectures in each step: the architecture at index i counts as
            one of step i / num_per_step. (If `training.max_nodes` cuts meta batches short, training
            is at a later step by then.)
    """

    space: SpaceConfig
    seed: int
    virtual_edges: int
    curriculum: CurriculumConfig = CurriculumConfig()
    num_per_step: int = 1

    def draw(self, index: int) -> Architecture:
        """Draw the architecture at an index."""
        step = index / self.num_per_step
        space = self.curriculum.space_at(self.space, step, self.seed, index)
        return sample_architecture(space, self.seed, index)

    def lower(self, architecture: Architecture) -> Plan:
        """Lower an architecture for the images and classes of the space."""
        return lower(architecture, *self.space.input_sizes)

    def graph(self, index: int, plan: Plan) -> ArchGraph:
        """Build the graph of a plan."""
        del index
        return build_graph(plan, self.virtual_edges)


class StoredArchitectures:
    """Reads architectures and graphs from published or generated files, reordered each epoch.

    Args:
        directory: The folder with the files of the space's split.
        space: The split, and the sizes of images and outputs. It must not restrict anything else,
            since the files are fixed.
        seed: Seed of the orders, and of the widths, which training files do not store.
        virtual_edges: Longest distance of an edge in the graphs.

    Raises:
        ValueError: If `directory` has no such files, or `space` restricts something.
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
        """Read the architecture at an index; its width is drawn anew each epoch."""
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


def create_source(config: ExperimentConfig) -> ArchitectureSource:
    """Create the source that a config describes.

    Args:
        config: The run's config; its `architectures` says whether they are drawn or read.

    Returns:
        The source.
    """
    seed, virtual_edges = config.training.seed, config.ghn.virtual_edges
    if config.architectures is None:
        num_per_step = config.training.meta_batch_size
        return SampledArchitectures(
            config.space, seed, virtual_edges, config.curriculum, num_per_step
        )
    return StoredArchitectures(config.architectures, config.space, seed, virtual_edges)
