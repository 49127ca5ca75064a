"""Meta batches: where they end, who works on what, going on from any position."""

import dataclasses
import itertools

import numpy as np
import pytest

from ghn_jax.sampling import SpaceConfig
from ghn_jax.targets.graph import build_graph
from ghn_jax.training.architecture_sources import SampledArchitectures
from ghn_jax.training.meta_batches import MetaBatchRules, iterate_meta_batches

SOURCE = SampledArchitectures(SpaceConfig(image_size=8, num_cells=(4, 8)), 3, virtual_edges=50)


def take(rules, first_index, count, num_workers=0):
    batches = iterate_meta_batches(SOURCE, rules, first_index, num_workers)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def num_nodes(index):
    return len(SOURCE.lower(SOURCE.draw(index)).nodes)


def assert_same(one, other):
    assert (one.indices, one.next_index) == (other.indices, other.next_index)
    for work, other_work in zip(one.work, other.work, strict=True):
        assert work.positions == other_work.positions and work.plans == other_work.plans
        for graph, other_graph in zip(work.graphs, other_work.graphs, strict=True):
            assert graph.tensors == other_graph.tensors
            np.testing.assert_array_equal(graph.distance, other_graph.distance)


@pytest.mark.parametrize("max_nodes", [None, 2000, 300, 100, 1])
def test_limit_on_nodes(max_nodes):
    index = 5
    for batch in take(MetaBatchRules(4, max_nodes, 8), index, 4):
        num = len(batch.indices)
        assert batch.indices == tuple(range(index, index + num))
        assert batch.next_index == index + num
        total = sum(map(num_nodes, batch.indices))
        assert num == 1 or total <= (max_nodes or 10**9)
        # It ends early only where the next architecture would exceed the limit.
        assert num == 4 or total + num_nodes(batch.next_index) > max_nodes
        (work,) = batch.work
        assert work.positions == tuple(range(num)) and work.capacity == 4
        for plan, graph, i in zip(work.plans, work.graphs, batch.indices, strict=True):
            assert plan.architecture == SOURCE.draw(i)
            np.testing.assert_array_equal(graph.distance, build_graph(plan).distance)
        index = batch.next_index


def test_any_position_goes_on_with_the_same():
    rules = MetaBatchRules(3, 200, 8)
    batches = take(rules, 0, 4)
    for position in (1, 3):
        resumed = take(rules, batches[position - 1].next_index, 4 - position)
        for expected, actual in zip(batches[position:], resumed, strict=True):
            assert_same(actual, expected)


def test_worker_processes_change_nothing():
    rules = MetaBatchRules(3, 200, 8)
    for one, other in zip(take(rules, 2, 3), take(rules, 2, 3, num_workers=1), strict=True):
        assert_same(one, other)


def test_processes_and_devices_work_on_disjoint_parts_of_the_same():
    whole = take(MetaBatchRules(8, 1500, 8), 0, 3)
    parts = [
        take(MetaBatchRules(8, 1500, 8, 2, num_processes=2, process_index=p), 0, 3) for p in (0, 1)
    ]
    for batch, *own in zip(whole, *parts, strict=True):
        assert {part.indices for part in own} == {batch.indices}
        shares = [work for part in own for work in part.work if work is not None]
        assert max(len(work.positions) for work in shares) <= 2
        assert sorted(p for work in shares for p in work.positions) == list(
            range(len(batch.indices))
        )
        for process, part in enumerate(own):
            positions = [p for work in part.work if work for p in work.positions]
            assert {batch.indices[p] % 2 for p in positions} <= {process}


def test_more_devices_than_architectures():
    (batch,) = take(MetaBatchRules(2, None, 8, num_devices=3), 0, 1)
    assert [work is None for work in batch.work] == [False, False, True]
    assert dataclasses.replace(MetaBatchRules(2, None, 8), num_devices=3).capacity == 1
