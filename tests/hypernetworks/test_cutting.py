"""Cutting on the device: a value by hand, the host's numbers, and few programs."""

import functools

import jax
import numpy as np
import pytest
from architecture_samples import COMPACT

from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks import ghn2
from ghn_jax.hypernetworks.cutting import DeviceCutting, HostCutting, create_cutting
from ghn_jax.hypernetworks.model import Hypernetwork
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.hypernetworks.preparation import Preparation, TensorGroup
from ghn_jax.programs.cache import ProgramCache
from ghn_jax.programs.table import ProgramTable
from ghn_jax.sampling import ArchitectureStream, SpaceConfig
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

CONFIG = ghn2(hidden_size=8, max_shape=(8, 8, 7, 7))
GHN = Hypernetwork(CONFIG)
VECTORS = GHN.create_decoders()["vectors"]
SPACE = SpaceConfig(widths=(8, 16), fc_sizes=(8, 24), image_size=8)


@functools.cache
def sampled_graphs() -> list[ArchGraph]:
    """Architectures as training draws them, and all that the space knows: repeats and crops."""
    stream = ArchitectureStream(SPACE, seed=0)
    architectures = [stream[index] for index in range(3)] + list(COMPACT.values())
    return [build_graph(lower(architecture, 8, 10)) for architecture in architectures]


@functools.cache
def device_predictor():
    return Predictor(CONFIG, cutting="device")


@functools.cache
def host_predictor():
    return Predictor(CONFIG, cutting="host")


@functools.cache
def ghn_params():
    return host_predictor().init(jax.random.key(0))


def draw_gradients(graphs, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [rng.standard_normal(tensor.shape, dtype=np.float32) for tensor in graph.tensors]
        for graph in graphs
    ]


@functools.cache
def drawn_tiles():
    """Graphs prepared, tiles of every kind, drawn."""
    prepared = Preparation(GHN)(sampled_graphs())
    rng, decode = np.random.default_rng(0), functools.partial(GHN.apply, method="decode")
    embeddings = jax.ShapeDtypeStruct((prepared.batch.primitive.size, 8), np.float32)
    likes = jax.eval_shape(decode, {"params": ghn_params()}, embeddings, prepared.requests)
    return prepared, {
        key: rng.standard_normal(like.shape).astype(np.float32) for key, like in likes.items()
    }


@functools.cache
def device_cutting():
    return DeviceCutting(ProgramTable())


def test_values_are_those_of_the_host():
    prepared, tiles = drawn_tiles()
    device = device_cutting()
    num_tensors = 0
    for key, groups in prepared.tensors.items():
        pairs = zip(
            HostCutting().cut(tiles[key], groups),
            device.cut(jax.device_put(tiles[key]), groups),
            strict=True,
        )
        for (place, expected), (same_place, tensor) in pairs:
            assert place == same_place and isinstance(tensor, jax.Array)
            # A copy and a multiplication: nothing is rounded differently.
            np.testing.assert_array_equal(tensor, expected)
            num_tensors += 1
    assert num_tensors == sum(prepared.num_tensors)


@pytest.mark.parametrize("left_out", [(), (0, 7)])
def test_gradients_are_those_of_the_host(left_out):
    prepared, tiles = drawn_tiles()
    grads = draw_gradients(sampled_graphs())
    grads = [None if index in left_out else g for index, g in enumerate(grads)]
    device = device_cutting()
    for key, groups in prepared.tensors.items():
        expected = HostCutting().tile_gradients(tiles[key], groups, grads)
        found = device.tile_gradients(jax.device_put(tiles[key]), groups, grads)
        assert found.dtype == np.float32
        # Sums over the repeats of a tile, in another order: of at most 64 x 64 float32 values of
        # order one, whose rounding grows with the root of their number.
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() <= 2e-6 * scale, key


def test_gradients_by_hand():
    # Two vectors of three channels from tiles of two: the first channel counts twice.
    group = TensorGroup((3,), "bias", 10.0, VECTORS, [(0, 0), (1, 0)], [2, 0])
    tiles = jax.numpy.arange(12, dtype=np.float32).reshape(3, 2, 2)
    device = DeviceCutting(ProgramTable())
    cut = dict(device.cut(tiles, [group]))
    np.testing.assert_array_equal(cut[0, 0], [100, 110, 100])
    np.testing.assert_array_equal(cut[1, 0], [20, 30, 20])
    grads = [[np.array([1, 2, 3], np.float32)], [np.array([4, 5, 6], np.float32)]]
    expected = np.zeros((3, 2, 2))
    expected[2, 1], expected[0, 1] = [40, 20], [100, 50]
    np.testing.assert_array_equal(device.tile_gradients(tiles, [group], grads), expected)
    expected[2] = 0
    found = device.tile_gradients(tiles, [group], [None, grads[1]])
    np.testing.assert_array_equal(found, expected)


def test_what_is_not_finite_stays_where_it_is():
    group = TensorGroup((2,), "scale", 1.0, VECTORS, [(0, 0), (1, 0), (2, 0)], [0, 1, 2])
    grads = [[np.full(2, value, np.float32)] for value in (np.nan, 1.0, 2.0)]
    device = DeviceCutting(ProgramTable())
    found = device.tile_gradients(jax.numpy.zeros((4, 2, 2)), [group], grads)
    np.testing.assert_array_equal(found[:, 0, 0], [np.nan, 1, 2, 0])


def test_a_prediction_and_its_pull_back_are_the_hosts():
    graphs = sampled_graphs()[:3]
    grads = [None, *draw_gradients(graphs)[1:]]
    found = []
    for predictor in (host_predictor(), device_predictor()):
        prepared = predictor.prepare(graphs)
        predicted, pull_back = predictor.predict_with_pull_back(ghn_params(), prepared)
        found.append((predicted, pull_back(grads)))
    (host_params, host_grads), (params, device_grads) = found
    jax.tree.map(np.testing.assert_array_equal, params, host_params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))
    for one, other in zip(*map(jax.tree.leaves, (device_grads, host_grads)), strict=True):
        # Rounding of the tiles' gradients, through the sums of the decoders and the sweep.
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


@pytest.mark.slow
def test_programs_are_few_and_none_is_compiled_after_a_warm_up():
    graphs, grads = sampled_graphs()[:4], draw_gradients(sampled_graphs()[:4])
    cache = ProgramCache()
    predictor = Predictor(CONFIG, programs=cache, cutting="device")
    samples = [predictor.prepare(graphs[start : start + 2]) for start in (0, 2)]
    predictor.warm_up(samples, coverage=1.0)
    num = cache.num_compilations
    kinds = {
        (
            key,
            len(prepared.requests[key]),
            group.shape,
            group.role,
            (len(group.rows) - 1).bit_length(),
        )
        for prepared in samples
        for key, groups in prepared.tensors.items()
        for group in groups
    }
    calls = {(key, len(nodes)) for prepared in samples for key, nodes in prepared.requests.items()}
    # Both ways of each kind of group; of decoding, with zeros of the tiles; of embedding, with
    # zeros of its gradients, where batches have different numbers of nodes.
    assert num <= 2 * len(kinds) + 3 * len(calls) + 3 * len(samples)
    for prepared, start in zip(samples, (0, 2), strict=True):
        _, pull_back = predictor.predict_with_pull_back(ghn_params(), prepared)
        pull_back(grads[start : start + 2])
        pull_back([None, grads[start + 1]])
    assert cache.num_compilations == num


def test_numbers_of_tensors_are_padded_to_powers_of_two():
    table = ProgramTable()
    device = DeviceCutting(table)
    tiles = jax.numpy.zeros((4, 2, 2))
    for num in range(1, 33):
        places = [(0, index) for index in range(num)]
        rows = [index % 4 for index in range(num)]
        group = TensorGroup((2,), "scale", 1.0, VECTORS, places, rows)
        assert [place for place, _ in device.cut(tiles, [group])] == places
        device.tile_gradients(tiles, [group], [[np.ones(2, np.float32)] * num])
    # For 1, 2, 4, 8, 16 and 32 tensors one each way, and the zeros.
    assert table.num_compilations == 2 * 6 + 1


def test_cutting_is_chosen_by_the_backend_or_by_name():
    table = ProgramTable()
    assert isinstance(create_cutting(table), HostCutting)  # tests run on CPUs
    assert isinstance(create_cutting(table, "device"), DeviceCutting)
    with pytest.raises(ValueError, match="cutting is 'gpu', expected one of host, device"):
        create_cutting(table, "gpu")
