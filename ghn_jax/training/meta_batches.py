"""Meta batches of architectures: drawn, lowered, turned into graphs and padded, ahead of need.

Architecture by architecture from the stream, so that a position (the index of the next
architecture) is all a checkpoint needs to go on with the same meta batches.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ghn_jax.graphs import ArchGraph, build_graph
from ghn_jax.hypernetworks.prediction import Predictor, PreparedGraphs
from ghn_jax.sampling import ArchitectureStream
from ghn_jax.targets.plan import Plan, lower


class MetaBatch(NamedTuple):
    """The architectures of one step.

    Attributes:
        indices: Of the architectures in their stream, consecutive.
        plans: Lowered architectures.
        prepared: Their graphs, padded.
        next_index: Of the first architecture of the next meta batch.
    """

    indices: tuple[int, ...]
    plans: tuple[Plan, ...]
    prepared: PreparedGraphs
    next_index: int


def draw_meta_batch(
    stream: ArchitectureStream,
    predictor: Predictor,
    first_index: int,
    size: int,
    max_nodes: int | None,
) -> MetaBatch:
    """Draw the meta batch that begins at an architecture of the stream.

    Args:
        stream: Where architectures come from.
        predictor: Pads the graphs.
        first_index: Of the first architecture.
        size: Most architectures; graphs are padded to as many.
        max_nodes: Most nodes of all graphs together; an architecture that would exceed it begins
            the next meta batch: none is passed over. One alone is always taken. None is no limit.

    Returns:
        The meta batch.
    """
    indices: list[int] = []
    plans: list[Plan] = []
    graphs: list[ArchGraph] = []
    num_nodes, index = 0, first_index
    while len(plans) < size:
        plan = lower(stream[index], stream.space.image_size, stream.space.num_classes)
        num_nodes += len(plan.nodes)
        if plans and max_nodes is not None and num_nodes > max_nodes:
            break
        indices.append(index)
        plans.append(plan)
        graphs.append(build_graph(plan, predictor.config.virtual_edges))
        index += 1
    return MetaBatch(tuple(indices), tuple(plans), predictor.prepare(graphs, size), index)


def iterate_meta_batches(
    stream: ArchitectureStream,
    predictor: Predictor,
    first_index: int,
    size: int,
    max_nodes: int | None,
) -> Iterator[MetaBatch]:
    """Yield meta batches without end, the next one being drawn in a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="architectures") as pool:
        future = pool.submit(draw_meta_batch, stream, predictor, first_index, size, max_nodes)
        while True:
            meta_batch = future.result()
            first_index = meta_batch.next_index
            future = pool.submit(draw_meta_batch, stream, predictor, first_index, size, max_nodes)
            yield meta_batch
