"""Training's architectures from a space, or from files."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.hypernetworks import GHNConfig
from ghn_jax.sampling import CurriculumConfig, SpaceConfig, sample_architecture
from ghn_jax.training.architecture_sources import create_source
from ghn_jax.training.config import ExperimentConfig, TrainingConfig

FILES = str(Path(__file__).parents[1] / "data")
SPACE = SpaceConfig(split="test")


def make_config(architectures=None, space=SPACE, seed=0, virtual_edges=50, **fields):
    return ExperimentConfig(
        architectures=architectures,
        space=space,
        training=TrainingConfig(seed=seed, meta_batch_size=4),
        ghn=GHNConfig(virtual_edges=virtual_edges),
        **fields,
    )


def test_without_files_the_space_is_drawn_from():
    space = SpaceConfig(image_size=8)
    source = create_source(make_config(space=space, seed=5, virtual_edges=3))
    architecture = source.draw(7)
    assert architecture == sample_architecture(space, 5, 7)
    plan = source.lower(architecture)
    assert (plan.image_size, plan.num_classes) == (8, 10)
    assert source.graph(7, plan).distance.max() == 3


def test_files_are_read_in_a_new_order_each_epoch():
    nets = DeepNets1M(FILES, "test")
    source = create_source(make_config(FILES, SPACE, 0))
    size = len(nets)
    expected = {nets.architecture(i) for i in range(size)}
    epochs = [[source.draw(e * size + i) for i in range(size)] for e in range(6)]
    assert all(set(epoch) == expected for epoch in epochs)
    assert len({tuple(map(str, epoch)) for epoch in epochs}) > 1
    other_seed = create_source(make_config(FILES, SPACE, 1))
    seeds = [tuple(str(s.draw(i)) for i in range(6 * size)) for s in (source, other_seed)]
    assert seeds[0] != seeds[1]


def test_graphs_are_those_of_the_files_also_in_another_process():
    nets = DeepNets1M(FILES, "test")
    source = pickle.loads(pickle.dumps(create_source(make_config(FILES, SPACE, 0))))
    for index in range(len(nets)):
        architecture = source.draw(index)
        number = next(i for i in range(len(nets)) if nets.architecture(i) == architecture)
        graph = source.graph(index, source.lower(architecture))
        stored = nets.graph(number, 10)
        assert graph.tensors == stored.tensors
        np.testing.assert_array_equal(graph.distance_matrix(), stored.distance_matrix())


def test_restrictions_of_the_space_are_refused():
    with pytest.raises(ValueError, match=r"^space.widths is \(16,\), expected None with archit"):
        create_source(make_config(FILES, SpaceConfig(split="test", widths=(16,))))


def test_a_folder_without_files_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} has no file for split 'train'"):
        create_source(make_config(str(tmp_path), SpaceConfig()))


def test_a_curriculum_follows_the_step():
    curriculum = CurriculumConfig(num_cells=((0, 4, 4), (10, 4, 8)))
    space = SpaceConfig(widths=(16,), max_steps=1)
    source = create_source(make_config(space=space, curriculum=curriculum))
    # Four architectures a step: index 40 is of step 10.
    assert {source.draw(index).num_cells for index in range(4)} == {4}
    late = {source.draw(index).num_cells for index in range(40, 80)}
    assert max(late) > 6 and min(late) >= 4
    assert pickle.loads(pickle.dumps(source)).draw(41) == source.draw(41)
    assert source.draw(60) == sample_architecture(
        dataclasses.replace(space, num_cells=(4, 8)), 0, 60
    )
    with pytest.raises(ValueError, match="^curriculum is .*expected none with architectures ="):
        make_config(FILES, curriculum=curriculum)
