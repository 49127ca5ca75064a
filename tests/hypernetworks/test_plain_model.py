"""The model as one function of parameters and graphs: its numbers, and JAX's transformations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from plain_composition import compose, one_cell
from random_parameters import draw_parameters

import ghn_jax
from ghn_jax.graphs import GraphBatch
from ghn_jax.hypernetworks import GHNConfig, Hypernetwork, ghn1, ghn2, mlp, predict_parameters
from ghn_jax.hypernetworks.message_passing.gated_gnn import GatedGNN
from ghn_jax.hypernetworks.model import make_batch
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.network import TargetNetwork

SIZES = {"hidden_size": 8, "max_shape": (8, 8, 7, 7)}
CONFIGS = {"ghn1": ghn1(**SIZES), "ghn2": ghn2(**SIZES), "mlp": mlp(**SIZES)}
PLAN = one_cell("conv_1x1", "skip_connect")


class Neighbors(nn.Module):
    """A module of one's own: what nodes hear of those next to them."""

    @nn.compact
    def __call__(self, nodes: jax.Array, batch: GraphBatch) -> jax.Array:
        own = (batch.distance == 1).astype(nodes.dtype)  # (B, N, N)
        return nodes + nn.Dense(nodes.shape[-1])(jnp.matmul(own, nodes))


@functools.cache
def graph_of(virtual_edges=50):
    return build_graph(PLAN, virtual_edges)


@functools.cache
def drawn(name):
    model = Hypernetwork(CONFIGS[name])
    return model, draw_parameters(model.init, graph_of(model.config.virtual_edges))


def total(model, variables, graph):
    """A smooth function of all predicted parameters."""
    return sum(jnp.sum(jnp.sin(array)) for array in model.apply(variables, graph))


@pytest.mark.parametrize("name", CONFIGS)
def test_is_what_programs_predict_and_what_is_written_by_hand(name):
    model, variables = drawn(name)
    graph = graph_of(model.config.virtual_edges)
    found = jax.jit(lambda v: model.apply(v, graph))(variables)
    assert [array.shape for array in found] == [tensor.shape for tensor in graph.tensors]
    predictor = Predictor(model)
    (predicted,) = predictor.predict(variables["params"], predictor.prepare([graph]))
    naive = compose(model.config, variables["params"], graph)
    for ours, others, by_hand in zip(found, predicted, naive, strict=True):
        np.testing.assert_allclose(ours, others, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours, by_hand, rtol=1e-5, atol=1e-6)


def test_init_draws_what_programs_start_from_whatever_the_graph():
    model, _ = drawn("ghn2")
    params = jax.jit(lambda key: model.init(key, graph_of()))(jax.random.key(3))["params"]
    expected = Predictor(model).init(jax.random.key(3))
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(compare, params, expected)  # XLA's options differ, and so does rounding
    assert set(params) == model.parameter_names()


@pytest.mark.parametrize("name", ["ghn2", "mlp"])
def test_forward_and_reverse_derivatives_agree(name, x64):
    model, variables = drawn(name)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
    rng = np.random.default_rng(0)
    direction, other = (
        jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), variables)
        for _ in range(2)
    )
    loss = functools.partial(total, model, graph=graph_of())

    def dot(a, b):
        return sum(map(jnp.vdot, *map(jax.tree.leaves, (a, b))))

    @jax.jit
    def derivatives(v, d, e):
        _, forward = jax.jvp(loss, (v,), (d,))
        reverse = dot(jax.grad(loss)(v), d)
        _, forward_over_reverse = jax.jvp(jax.grad(loss), (v,), (d,))
        reverse_over_forward = jax.grad(lambda v: jax.jvp(loss, (v,), (d,))[1])(v)
        return forward, reverse, dot(forward_over_reverse, e), dot(reverse_over_forward, e)

    first, second, third, fourth = derivatives(variables, direction, other)
    np.testing.assert_allclose(first, second, rtol=1e-9)
    np.testing.assert_allclose(third, fourth, rtol=1e-9)
    step = 1e-6

    def moved(step):
        return loss(jax.tree.map(lambda v, d: v + step * d, variables, direction))

    np.testing.assert_allclose(first, (moved(step) - moved(-step)) / (2 * step), rtol=1e-6)


def test_vmap_over_graphs_and_over_ghns():
    model, variables = drawn("ghn2")
    graph = graph_of()
    batch = make_batch(model.config, [graph])
    # Graphs of the same nodes and tensors, with other distances.
    others = jax.tree.map(lambda x: np.stack([x, x]), batch)
    others = others._replace(distance=np.stack([batch.distance, np.minimum(batch.distance, 2)]))
    apply = lambda v, b: model.apply(v, b, [graph.tensors])[0]  # noqa: E731
    many = jax.jit(jax.vmap(apply, (None, 0)))(variables, others)
    for index in range(2):
        one = jax.jit(apply)(variables, jax.tree.map(lambda x: x[index], others))  # noqa: B023
        for a, b in zip(many, one, strict=True):
            np.testing.assert_allclose(a[index], b, rtol=1e-5, atol=1e-6)
    two = jax.tree.map(lambda x: np.stack([x, 2 * x]), variables)
    both = jax.jit(jax.vmap(apply, (0, None)))(two, batch)
    second = jax.jit(apply)(jax.tree.map(lambda x: 2 * x, variables), batch)
    for a, b in zip(both, second, strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_shard_map_with_its_default_arguments():
    model, variables = drawn("ghn2")
    graph = graph_of()
    batch = jax.tree.map(lambda x: np.concatenate([x, x]), make_batch(model.config, [graph]))
    mesh = Mesh(np.array(jax.devices()[:2]), ("graphs",))

    def predict(variables, batch):
        (arrays,) = model.apply(variables, batch, [graph.tensors])
        return [jnp.expand_dims(array, 0) for array in arrays]

    def gradient(variables, batch):
        # Variables are the same on all devices: JAX sums what each contributes.
        return jax.grad(lambda v: sum(jnp.sum(jnp.sin(a)) for a in predict(v, batch)))(variables)

    split, whole = PartitionSpec("graphs"), PartitionSpec()
    run = functools.partial(jax.shard_map, mesh=mesh, in_specs=(whole, split))
    arrays = jax.jit(run(predict, out_specs=split))(variables, batch)
    for array, one in zip(arrays, model.apply(variables, graph), strict=True):
        np.testing.assert_allclose(array, np.stack([one, one]), rtol=1e-5, atol=1e-6)
    found = jax.jit(run(gradient, out_specs=whole))(variables, batch)
    expected = jax.grad(lambda v: 2 * total(model, v, graph))(variables)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_predicted_parameters_are_the_targets_tree():
    model, variables = drawn("ghn2")
    params = predict_parameters(model, variables, graph_of())
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    init = jax.eval_shape(TargetNetwork(PLAN).init, jax.random.key(0), images)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, init)
    assert np.isfinite(TargetNetwork(PLAN).apply({"params": params}, images)).all()


def test_a_module_of_ones_own():
    config = ghn_jax.ghn2(**SIZES)
    model = ghn_jax.Hypernetwork(config, message_passing=Neighbors())
    variables = jax.jit(lambda key: model.init(key, graph_of()))(jax.random.key(0))
    assert "message_passing" in variables["params"] and "gnn" not in variables["params"]
    ghn = ghn_jax.GHN(model, variables["params"])

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2)))

    images = np.ones((2, 8, 8, 3), np.float32)
    graph = ghn_jax.trace(Net(), images, num_classes=10).graph
    arrays = jax.jit(lambda v: model.apply(v, graph))(variables)
    prediction = ghn.predict(Net(), images)
    found = {tuple(t.path): array for t, array in zip(graph.tensors, arrays, strict=True)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(prediction.variables["params"]):
        names = tuple(key.key for key in path)
        (expected,) = [array for key, array in found.items() if key[-2:] == names]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fields", [{"num_rounds": 2}, {"forward_only": True}])
def test_rounds_and_passes_of_the_gated_gnn(fields):
    model = Hypernetwork(CONFIGS["ghn2"], message_passing=GatedGNN(50, **fields))
    _, variables = drawn("ghn2")
    params = dict(variables["params"])
    params["message_passing"] = params.pop("gnn")  # all rounds share what one has
    found = jax.jit(lambda p: model.apply({"params": p}, graph_of()))(params)
    predictor = Predictor(model)
    (predicted,) = predictor.predict(params, predictor.prepare([graph_of()]))
    once = jax.jit(lambda v: Hypernetwork(CONFIGS["ghn2"]).apply(v, graph_of()))(variables)
    for ours, others in zip(found, predicted, strict=True):
        np.testing.assert_allclose(ours, others, rtol=1e-5, atol=1e-6)
    assert any(np.abs(ours - one).max() > 1e-3 for ours, one in zip(found, once, strict=True))


def test_parameters_of_another_model_are_refused():
    _, variables = drawn("ghn2")
    with pytest.raises(
        ValueError, match=r"expected \['embedding', 'kernels', 'mlp'.*model=model\)$"
    ):
        ghn_jax.GHN(CONFIGS["mlp"], variables["params"])
    model, _ = drawn("ghn2")
    with pytest.raises(ValueError, match="^tensors is missing, expected those of each graph"):
        model.apply(variables, make_batch(model.config, [graph_of()]))
    assert isinstance(ghn_jax.GHN(model, variables["params"]).config, GHNConfig)
