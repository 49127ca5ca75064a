"""Meta batches of architectures: drawn, lowered and distributed over devices, ahead of time.

Architectures are taken from the source one by one, so a checkpoint needs only the index of the next
one to continue with the same meta batches. All processes form the same meta batches, but each
builds only the graphs of its own architectures.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator
from typing import NamedTuple

from ghn_jax.architectures import Architecture
from ghn_jax.data import Prefetcher
from ghn_jax.graphs import ArchGraph
from ghn_jax.parallel.balance import estimate_seconds, share_out
from ghn_jax.parallel.replica import Work
from ghn_jax.targets.plan import Plan
from ghn_jax.training.architecture_sources import ArchitectureSource
from ghn_jax.training.workers import Workers


class MetaBatch(NamedTuple):
    """The architectures of one step.

    Attributes:
        indices: Consecutive indices of the architectures in their source.
        work: The architectures of each local device; None for a device without any.
        next_index: Index of the first architecture of the next meta batch.
    """

    indices: tuple[int, ...]
    work: tuple[Work | None, ...]
    next_index: int


@dataclasses.dataclass(frozen=True)
class MetaBatchRules:
    """How architectures are divided into meta batches and distributed over devices.

    Attributes:
        size: Maximum number of architectures in a meta batch.
        max_nodes: Maximum number of nodes of all its graphs together; None means no limit. An
            architecture that would exceed the limit begins the next meta batch, so none is skipped.
            A single architecture may exceed it.
        batch_size: Number of images, for time estimates.
        num_devices: Number of devices of this process.
        num_processes: Number of processes, P; process p works on architectures with index = p
            modulo P.
        process_index: Index of this process.
    """

    size: int
    max_nodes: int | None
    batch_size: int
    num_devices: int = 1
    num_processes: int = 1
    process_index: int = 0

    def is_own(self, index: int) -> bool:
        """Return whether this process works on the architecture at an index."""
        return index % self.num_processes == self.process_index

    @property
    def capacity(self) -> int:
        """Maximum number of architectures that one device gets."""
        return -(-self.size // (self.num_processes * self.num_devices))


class Drawn(NamedTuple):
    """An architecture of a source.

    Attributes:
        number: Index in the source.
        plan: The lowered architecture.
        graph: The architecture's graph; None if another process works on it.
    """

    number: int
    plan: Plan
    graph: ArchGraph | None


def draw_and_lower(source: ArchitectureSource, rules: MetaBatchRules, index: int) -> Drawn:
    """Draw an architecture, lower it and, if this process works on it, build its graph."""
    plan = source.lower(source.draw(index))
    return Drawn(index, plan, source.graph(index, plan) if rules.is_own(index) else None)


class _DrawElsewhere:
    """Runs `draw_and_lower` in another process, which sends architectures but no plans."""

    def __init__(self, source: ArchitectureSource, rules: MetaBatchRules) -> None:
        self._source, self._rules = source, rules

    def __call__(self, index: int) -> tuple[Architecture, ArchGraph | None]:
        _, plan, graph = draw_and_lower(self._source, self._rules, index)
        assert isinstance(plan.architecture, Architecture)
        return plan.architecture, graph


def iterate_drawn(
    source: ArchitectureSource, rules: MetaBatchRules, first_index: int, num_workers: int
) -> Generator[Drawn]:
    """Yield architectures in order, without end.

    Args:
        source: The source of architectures.
        rules: Which architectures this process works on.
        first_index: Index of the first architecture.
        num_workers: Number of worker processes that draw; 0 draws in this process.

    Yields:
        Architectures, with graphs if this process works on them.
    """
    indices = itertools.count(first_index)
    if num_workers == 0:
        yield from (draw_and_lower(source, rules, index) for index in indices)
    num_ahead = max(4 * rules.size, 2 * num_workers)
    fn = _DrawElsewhere(source, rules)
    with Workers(fn, first_index, num_workers, num_ahead, "architectures") as workers:
        for index, (architecture, graph) in zip(indices, workers, strict=False):
            yield Drawn(index, source.lower(architecture), graph)


def cut_meta_batches(drawn: Iterator[Drawn], rules: MetaBatchRules) -> Generator[MetaBatch]:
    """Divide a sequence of architectures into meta batches, and distribute these over devices.

    Args:
        drawn: The architectures in order.
        rules: The limits of a meta batch, and the devices.

    Yields:
        Meta batches, without end.
    """
    members: list[Drawn] = []
    num_nodes = 0
    for item in drawn:
        size = len(item.plan.nodes)
        if members and rules.max_nodes is not None and num_nodes + size > rules.max_nodes:
            yield _share_out(members, rules)
            members, num_nodes = [], 0
        members.append(item)
        num_nodes += size
        if len(members) == rules.size:
            yield _share_out(members, rules)
            members, num_nodes = [], 0


def _share_out(members: list[Drawn], rules: MetaBatchRules) -> MetaBatch:
    own = [position for position, item in enumerate(members) if item.graph is not None]
    costs = [estimate_seconds(members[i].plan, rules.batch_size) for i in own]
    work: list[Work | None] = []
    for share in share_out(costs, rules.num_devices):
        positions = tuple(own[i] for i in share)
        plans = tuple(members[i].plan for i in positions)
        graphs = tuple(g for i in positions if (g := members[i].graph) is not None)
        work.append(Work(positions, plans, graphs, rules.capacity) if positions else None)
    indices = tuple(item.number for item in members)
    return MetaBatch(indices, tuple(work), indices[-1] + 1)


def iterate_meta_batches(
    source: ArchitectureSource, rules: MetaBatchRules, first_index: int, num_workers: int = 0
) -> Generator[MetaBatch]:
    """Yield meta batches without end, preparing the next one in the meantime.

    Args:
        source: The source of architectures.
        rules: The limits of a meta batch, and the devices.
        first_index: Index of the first architecture.
        num_workers: Number of worker processes that draw; 0 draws in a thread.

    Yields:
        Meta batches.
    """
    drawn = iterate_drawn(source, rules, first_index, num_workers)
    batches = cut_meta_batches(drawn, rules)
    try:
        with Prefetcher(lambda _: next(batches), buffer_size=1) as ahead:
            yield from ahead
    finally:
        batches.close()
        drawn.close()
