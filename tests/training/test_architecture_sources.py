"""Training's architectures from a space, or from files."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.hypernetworks import GHNConfig
from ghn_jax.sampling import SpaceConfig, sample_architecture
from ghn_jax.training.architecture_sources import create_source

FILES = str(Path(__file__).parents[1] / "data")
SPACE = SpaceConfig(split="test")


def test_without_files_the_space_is_drawn_from():
    space = SpaceConfig(image_size=8)
    source = create_source(None, space, 5, GHNConfig(virtual_edges=3))
    architecture = source.draw(7)
    assert architecture == sample_architecture(space, 5, 7)
    plan = source.lower(architecture)
    assert (plan.image_size, plan.num_classes) == (8, 10)
    assert source.graph(7, plan).distance.max() == 3


def test_files_are_read_in_a_new_order_each_epoch():
    nets = DeepNets1M(FILES, "test")
    source = create_source(FILES, SPACE, 0, GHNConfig())
    size = len(nets)
    expected = {nets.architecture(i) for i in range(size)}
    epochs = [[source.draw(e * size + i) for i in range(size)] for e in range(6)]
    assert all(set(epoch) == expected for epoch in epochs)
    assert len({tuple(map(str, epoch)) for epoch in epochs}) > 1
    other_seed = create_source(FILES, SPACE, 1, GHNConfig())
    seeds = [tuple(str(s.draw(i)) for i in range(6 * size)) for s in (source, other_seed)]
    assert seeds[0] != seeds[1]


def test_graphs_are_those_of_the_files_also_in_another_process():
    nets = DeepNets1M(FILES, "test")
    source = pickle.loads(pickle.dumps(create_source(FILES, SPACE, 0, GHNConfig())))
    for index in range(len(nets)):
        architecture = source.draw(index)
        number = next(i for i in range(len(nets)) if nets.architecture(i) == architecture)
        graph = source.graph(index, source.lower(architecture))
        stored = nets.graph(number, 10)
        assert graph.tensors == stored.tensors
        np.testing.assert_array_equal(graph.distance_matrix(), stored.distance_matrix())


def test_restrictions_of_the_space_are_refused():
    with pytest.raises(ValueError, match=r"^space.widths is \(16,\), expected None with archit"):
        create_source(FILES, SpaceConfig(split="test", widths=(16,)), 0, GHNConfig())


def test_a_folder_without_files_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} has no file for split 'train'"):
        create_source(str(tmp_path), SpaceConfig(), 0, GHNConfig())
