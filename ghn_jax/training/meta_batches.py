"""Meta batches of architectures: drawn, lowered and shared out to devices, ahead of need.

Architecture by architecture from the source, so that a position (the index of the next
architecture) is all a checkpoint needs to go on with the same meta batches. Every process finds the
same meta batches; it builds the graphs of its own part only.
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
        indices: Of the architectures in their source, consecutive.
        work: For each local device, its architectures; None for one that has none.
        next_index: Of the first architecture of the next meta batch.
    """

    indices: tuple[int, ...]
    work: tuple[Work | None, ...]
    next_index: int


@dataclasses.dataclass(frozen=True)
class MetaBatchRules:
    """How meta batches are cut and shared out.

    Attributes:
        size: Most architectures of a meta batch.
        max_nodes: Most nodes of all its graphs together; an architecture that would exceed it
            begins the next meta batch: none is passed over. One alone is always taken. None is no
            limit.
        batch_size: Number of images, for estimates of the time.
        num_devices: Of this process.
        num_processes: Process p of P works on the architectures with index = p modulo P.
        process_index: Of this process.
    """

    size: int
    max_nodes: int | None
    batch_size: int
    num_devices: int = 1
    num_processes: int = 1
    process_index: int = 0

    def is_own(self, index: int) -> bool:
        """Whether this process works on an architecture."""
        return index % self.num_processes == self.process_index

    @property
    def capacity(self) -> int:
        """Most architectures that one device gets."""
        return -(-self.size // (self.num_processes * self.num_devices))


class Drawn(NamedTuple):
    """An architecture of a source.

    Attributes:
        number: Index in the source.
        plan: Lowered.
        graph: Its graph; None where another process works on it.
    """

    number: int
    plan: Plan
    graph: ArchGraph | None


def draw_and_lower(source: ArchitectureSource, rules: MetaBatchRules, index: int) -> Drawn:
    """Draw an architecture, lower it and, if it is one's own, make its graph."""
    plan = source.lower(source.draw(index))
    return Drawn(index, plan, source.graph(index, plan) if rules.is_own(index) else None)


class _DrawElsewhere:
    """`draw_and_lower` for another process: it sends the architecture, which is lowered again."""

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
        source: Of architectures.
        rules: Whose are whose.
        first_index: Of the first one.
        num_workers: Number of processes that draw; 0 draws in this one.
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
    """Cut a sequence of architectures into meta batches and share them out.

    Args:
        drawn: Architectures in order.
        rules: How.

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
    """Yield meta batches from an architecture on, without end, the next one drawn meanwhile.

    Args:
        source: Of architectures.
        rules: How meta batches are cut and shared out.
        first_index: Of the first architecture.
        num_workers: Number of processes that draw; 0 draws in a thread.
    """
    drawn = iterate_drawn(source, rules, first_index, num_workers)
    batches = cut_meta_batches(drawn, rules)
    try:
        with Prefetcher(lambda _: next(batches), buffer_size=1) as ahead:
            yield from ahead
    finally:
        batches.close()
        drawn.close()
