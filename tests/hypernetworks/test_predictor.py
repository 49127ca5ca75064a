"""Predictions: shapes, padding, values by hand, gradients against a plain composition."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architecture_samples import ONE_OP, VARIANTS, one_op
from flax.traverse_util import flatten_dict
from plain_composition import compose, jit, network_loss, one_cell
from random_parameters import draw_parameters

from ghn_jax.architectures import Architecture, Genotype
from ghn_jax.graphs import PRIMITIVES
from ghn_jax.hypernetworks import ghn1, ghn2, mlp
from ghn_jax.hypernetworks.model import Hypernetwork
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.hypernetworks.preparation import padded_num_nodes, padded_num_tiles
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.network import TargetNetwork, flatten_params, params_tree
from ghn_jax.targets.plan import lower

TINY = {"hidden_size": 8, "max_shape": (8, 8, 7, 7)}
CONFIGS = {"ghn1": ghn1(**TINY), "ghn2": ghn2(**TINY), "mlp": mlp(**TINY)}
IMAGE_SIZE = 8
# All an architecture can have, with channels of 8 to 32: tiles of 8 are cropped and repeated.
SAMPLES = {**ONE_OP, **VARIANTS}
del SAMPLES["none"]
PLANS = {name: lower(sample, IMAGE_SIZE, 10) for name, sample in SAMPLES.items()}


@functools.cache
def predictor():
    return Predictor(CONFIGS["ghn2"])


@functools.cache
def ghn_params():
    return predictor().init(jax.random.key(0))


@functools.cache
def prepared_samples():
    return predictor().prepare([build_graph(plan) for plan in PLANS.values()])


def predict_samples(params):
    return dict(zip(PLANS, predictor().predict(params, prepared_samples()), strict=True))


@pytest.mark.parametrize("name", ["msa", "conv_7x1_1x7", "two layers", "flatten", "sep_conv_3x3"])
def test_predictions_have_the_tree_shapes_and_dtypes_of_init(name):
    plan = PLANS[name]
    predicted = params_tree(plan, predict_samples(ghn_params())[name])
    images = jax.ShapeDtypeStruct((2, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    expected = jax.eval_shape(TargetNetwork(plan).init, jax.random.key(0), images)["params"]
    actual = jax.tree.map(lambda x: (x.shape, x.dtype), predicted)
    assert actual == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


def test_channels_beyond_the_tile_repeat_it():
    tensors = dict(zip([t.path for t in PLANS["conv_3x3"].tensors], range(1000), strict=False))
    arrays = predict_samples(ghn_params())["conv_3x3"]
    wide = arrays[tensors["cell3_op0_conv", "kernel"]]
    assert wide.shape == (3, 3, 32, 32)
    for start in (8, 16, 24):
        np.testing.assert_array_equal(wide[:, :, start : start + 8], wide[:, :, :8])
        np.testing.assert_array_equal(wide[..., start : start + 8], wide[..., :8])
    scale = arrays[tensors["cell3_op0_norm", "scale"]]
    np.testing.assert_array_equal(scale, np.tile(scale[:8], 4))


def test_constant_decoders_by_hand():
    """All parameters zero but the last biases: kernels c sqrt(beta / fan_in), norms by formula."""
    params = jax.tree.map(jnp.zeros_like, ghn_params())
    params["kernels"]["bias_3"] += 0.5
    rows = np.zeros(16, np.float32)
    rows[:8], rows[8:] = 3.0, -2.0  # scale and bias
    params["vectors"]["mlp"]["layer_2"]["bias"] = jnp.asarray(rows)
    predicted = predict_samples(params)

    def values(name, *path):
        index = [tensor.path for tensor in PLANS[name].tensors].index(path)
        return predicted[name][index]

    def assert_constant(array, value):
        np.testing.assert_allclose(array, np.full(array.shape, value), rtol=1e-6)

    assert_constant(values("conv_3x3", "cell3_op0_conv", "kernel"), 0.5 * math.sqrt(2 / (9 * 32)))
    # Depthwise kernels and 1x7 ones have no relu behind them: beta is 1.
    depthwise = values("sep_conv_5x5", "cell0_op0_first_depthwise", "kernel")
    assert_constant(depthwise, 0.5 * math.sqrt(1 / 25))
    assert_constant(values("conv_7x1_1x7", "cell0_op0_row", "kernel"), 0.5 * math.sqrt(1 / (7 * 8)))
    column = values("conv_7x1_1x7", "cell0_op0_column", "kernel")
    assert_constant(column, 0.5 * math.sqrt(2 / (7 * 8)))
    assert_constant(values("msa", "cell0_op0", "qkv", "kernel"), 0.5 * math.sqrt(2 / 8))
    assert_constant(values("msa", "stem", "position"), 0.5)
    assert_constant(values("conv_3x3", "stem_norm", "scale"), 2 / (1 + math.exp(-3 / 2)))
    assert_constant(values("conv_3x3", "stem_norm", "bias"), math.tanh(-2 / 5))
    assert_constant(values("conv_3x3", "fc0", "dense", "kernel"), 0)
    assert_constant(values("conv_3x3", "fc0", "dense", "bias"), 0)


def test_nothing_is_compiled_again():
    start = predictor().num_compilations  # of other tests
    predict_samples(ghn_params())
    before = predictor().num_compilations
    # Two programs for each kind of tile at most, forward and backward, and one to add gradients.
    assert before - start <= 3 * (len(prepared_samples().requests) + 1)
    predict_samples(ghn_params())
    assert predictor().num_compilations == before


def test_nothing_is_compiled_after_a_warm_up():
    some, graphs = Predictor(CONFIGS["ghn2"]), [build_graph(PLANS[n]) for n in ("msa", "no norm")]
    prepared = some.prepare(graphs)
    assert some.warm_up([prepared], coverage=1.0) == len(prepared.requests) + 2
    warm = some.num_compilations
    predicted, pull_back = some.predict_with_pull_back(ghn_params(), prepared)
    pull_back(predicted)
    assert some.num_compilations == warm
    assert Predictor(CONFIGS["ghn2"]).warm_up([prepared], coverage=0.3) < len(prepared.requests)


def test_padding_changes_nothing():
    small = build_graph(lower(VARIANTS["no preprocess"], IMAGE_SIZE, 10))
    long = Architecture(
        Genotype((("conv_1x1", 0), ("conv_1x1", 1)), (2,), (("conv_1x1", 0), ("cse", 1)), (2,)),
        num_cells=14,
        channels=8,
    )
    large = build_graph(lower(long, IMAGE_SIZE, 10))
    assert small.num_nodes < 128 < large.num_nodes
    alone = predictor().predict(ghn_params(), predictor().prepare([small]))[0]
    for graphs, num_graphs, position in (([large, small], None, 1), ([small], 3, 0)):
        prepared = predictor().prepare(graphs, num_graphs)
        assert prepared.batch.primitive.shape[0] == (num_graphs or len(graphs))
        together = predictor().predict(ghn_params(), prepared)
        assert len(together) == len(graphs)
        for tensor, one, other in zip(small.tensors, alone, together[position], strict=True):
            scale = np.abs(one).max()
            # The order of sums may differ; 1e-6 of a value of order 1.
            assert np.abs(one - other).max() <= 2e-6 * scale, tensor.path


@pytest.fixture
def x64_batch(x64):
    # In float64 Flax's layer norm promotes, which strict promotion refuses.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    rng = np.random.default_rng(0)
    yield rng.standard_normal((3, IMAGE_SIZE, IMAGE_SIZE, 3)), np.array([3, 0, 9], np.int32)
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("ghn2", ("msa", "dil_conv_3x3")),  # every kind of tile
        ("ghn1", ("conv_1x1", "skip_connect")),
        ("mlp", ("conv_1x1", "skip_connect")),
    ],
)
def test_pull_back_is_the_gradient_of_the_composition(name, operations, x64_batch):
    # In float64, where no relu or max-pool decision flips on rounding.
    config, plan = CONFIGS[name], one_cell(*operations)
    predictor = Predictor(config)
    graph = build_graph(plan, config.virtual_edges)
    drawn = draw_parameters(Hypernetwork(config).init, graph)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), drawn)

    def loss_fn(params):
        return network_loss(plan, compose(config, params, graph), *x64_batch)

    expected = flatten_dict(jit(jax.grad(loss_fn))(params))
    # Behind another graph, which takes no part.
    graphs = [build_graph(PLANS["conv_1x1"], config.virtual_edges), graph]
    arrays, pull_back = predictor.predict_with_pull_back(params, predictor.prepare(graphs))
    network_grad_fn = jit(jax.grad(functools.partial(network_loss, plan)))
    actual = flatten_dict(pull_back([None, network_grad_fn(arrays[1], *x64_batch)]))
    assert set(actual) == set(expected)
    for path, gradient in expected.items():
        scale = np.abs(gradient).max()
        assert scale > 0, path
        assert np.abs(actual[path] - gradient).max() <= 1e-9 * scale, path


@functools.cache
def pull_back_of_samples():
    return predictor().predict_with_pull_back(ghn_params(), prepared_samples())[1]


def draw_gradients(seed):
    rng = np.random.default_rng(seed)
    return [
        [rng.standard_normal(tensor.shape, dtype=np.float32) for tensor in plan.tensors]
        for plan in PLANS.values()
    ]


def test_gradients_reach_every_parameter():
    batch = prepared_samples().batch
    grads = flatten_dict(pull_back_of_samples()(draw_gradients(0)))
    assert set(grads) == set(flatten_dict(ghn_params()))
    for path, gradient in grads.items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path
    # Every pixel of the decoder's largest kernel, every node type, and the sizes that occur.
    pixels = np.abs(grads["kernels", "kernel_1"]).max(axis=(0, 3))
    assert pixels.shape == (7, 7) and (pixels > 0).all()
    used_rows = {
        "primitive": batch.primitive[batch.node_mask],
        "channel": batch.shape_index[batch.node_mask][:, :2],
        "spatial": batch.shape_index[batch.node_mask][:, 2:],
    }
    for name, used in used_rows.items():
        reached = np.abs(grads["embedding", name]).max(axis=1) > 0
        np.testing.assert_array_equal(np.flatnonzero(reached), np.unique(used), err_msg=name)
    assert len(np.unique(used_rows["primitive"])) == len(PRIMITIVES)


@pytest.mark.parametrize("nodes_at_once", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_visiting_several_nodes_at_once_changes_nothing(nodes_at_once):
    graphs = [build_graph(PLANS[name]) for name in ("two layers", "msa")]
    found = {}
    for num in (1, nodes_at_once):
        some = Predictor(CONFIGS["ghn2"], nodes_at_once=num)
        prepared = some.prepare(graphs)
        predicted, pull_back = some.predict_with_pull_back(ghn_params(), prepared)
        rng = np.random.default_rng(0)
        grads = [[rng.standard_normal(x.shape).astype(np.float32) for x in g] for g in predicted]
        found[num] = (predicted, pull_back(grads), some.embed_nodes(ghn_params(), prepared))
    assert [len(nodes) for nodes in found[1][2]] == [graph.num_nodes for graph in graphs]
    scale = lambda x: np.abs(x).max() + 1e-30  # noqa: E731
    deviations = jax.tree.map(lambda a, b: scale(a - b) / scale(a), *found.values())
    assert max(jax.tree.leaves(deviations)) < 2e-6


def test_sizes_of_requests_are_few_and_waste_little():
    sizes = {padded_num_tiles(num, 10**6) for num in range(1, 513)}
    assert sorted(sizes) == [4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512]
    assert [padded_num_tiles(num, 10**7) for num in (1, 2, 3)] == [1, 2, 4]


def test_sizes_of_graphs_are_few_and_waste_little():
    sizes = sorted({padded_num_nodes(num) for num in range(1, 3073)})
    assert sizes == [128, 256, 384, 512, 768, 1024, 1536, 2048, 3072]
    assert [padded_num_nodes(num) for num in (128, 129, 384, 385)] == [128, 256, 384, 512]


def test_graphs_left_out_have_no_gradient():
    grads = draw_gradients(1)
    with_zeros = [[0 * g for g in grads[0]], *grads[1:]]
    left_out = pull_back_of_samples()([None, *grads[1:]])
    jax.tree.map(np.testing.assert_array_equal, left_out, pull_back_of_samples()(with_zeros))


def test_errors_of_parameter_trees():
    plan = lower(one_op("conv_1x1"), IMAGE_SIZE, 10)
    arrays = [np.zeros(tensor.shape, np.float32) for tensor in plan.tensors]
    tree = params_tree(plan, arrays)
    for one, other in zip(flatten_params(plan, tree), arrays, strict=True):
        assert one is other
    total = len(arrays)
    with pytest.raises(ValueError, match=f"^arrays ends before fc0/dense/bias, expected {total} a"):
        params_tree(plan, arrays[:-1])
    with pytest.raises(
        ValueError, match=f"^arrays has {total + 1} arrays, expected {total}: .*fc0/"
    ):
        params_tree(plan, [*arrays, arrays[0]])
    misshapen = [np.zeros((2, 2)), *arrays[1:]]
    with pytest.raises(
        ValueError, match=r"^stem_conv/kernel has shape \(2, 2\), expected \(3, 3, 3"
    ):
        params_tree(plan, misshapen)
    tree["fc0"]["dense"]["gamma"] = np.zeros(3)
    with pytest.raises(ValueError, match="^params has the extra tensor fc0/dense/gamma, expected"):
        flatten_params(plan, tree)
    tree["fc0"]["dense"] = {"kernel": tree["fc0"]["dense"]["kernel"]}
    with pytest.raises(ValueError, match="^params misses tensor fc0/dense/bias, expected exactly"):
        flatten_params(plan, tree)
    tree["fc0"]["dense"]["bias"] = np.zeros(11)
    with pytest.raises(ValueError, match=r"^fc0/dense/bias has shape \(11,\), expected \(10,\)"):
        flatten_params(plan, tree)


def test_errors_of_prepare():
    graph = build_graph(PLANS["conv_1x1"])
    with pytest.raises(ValueError, match="^graphs has 2 graphs, expected at most num_graphs=1"):
        predictor().prepare([graph, graph], num_graphs=1)
    with pytest.raises(ValueError, match="^graphs is empty, expected at least one graph"):
        predictor().prepare([])
