"""The one result of a prediction: the same of an architecture and of any other network."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architecture_samples import ONE_OP
from flax.traverse_util import flatten_dict

import ghn_jax
from ghn_jax.finetune import layer_order, postprocess
from ghn_jax.graphs import ArchGraph
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
ARCHITECTURE = ONE_OP["conv_3x3"]


class Network(nn.Module):
    """One parameter, `floor`, cannot be predicted."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        x = jnp.maximum(
            x, self.param("floor", nn.initializers.zeros_init(), (4,))[None, None, None]
        )
        return nn.Dense(10)(x.mean((1, 2)))


@functools.cache
def ghn():
    return ghn_jax.load("digits")


@functools.cache
def predictions():
    return {
        "architecture": ghn().predict(ARCHITECTURE),
        "module": ghn().predict(Network(), IMAGES),
    }


def sizes(tree):
    return {"/".join(path): leaf.size for path, leaf in flatten_dict(tree).items()}


def test_of_any_other_network():
    prediction = predictions()["module"]
    assert isinstance(prediction, ghn_jax.Prediction)
    # conv 3 * 3 * 3 * 4 + 4, norm 2 * 4, dense 4 * 10 + 10, by hand; 4 of `floor` are kept.
    assert prediction.num_parameters == prediction.report.num_predicted == 112 + 8 + 50
    assert prediction.report.num_parameters == 112 + 8 + 50 + 4
    assert prediction.report.kept["floor"].startswith("meets the data in max")
    assert set(prediction.variables) == {"params", "batch_stats"}


def test_of_an_architecture_all_is_predicted():
    prediction = predictions()["architecture"]
    assert isinstance(prediction, ghn_jax.Prediction)
    expected = sizes(prediction.variables["params"])
    assert set(prediction.report.predicted) == set(expected)
    assert prediction.report.kept == {}
    assert prediction.num_parameters == sum(expected.values())
    count, tensors = f"{sum(expected.values()):,}", len(expected)
    assert str(prediction.report) == f"{count} of {count} parameters predicted, {tensors} tensors"
    logits = prediction.network.apply(prediction.variables, np.zeros(IMAGES.shape, np.float32))
    assert logits.shape == (2, 10)


def test_tracing_the_module_of_an_architecture_predicts_the_same_parameters():
    expected = predictions()["architecture"]
    found = ghn().predict(expected.network, IMAGES, strict=True)
    assert found.report.predicted == expected.report.predicted
    assert found.num_parameters == expected.num_parameters
    assert all(path.startswith("batch_stats/") for path in found.report.kept)


@pytest.mark.parametrize("name", ["architecture", "module"])
def test_views_say_where_a_tensor_lies(name):
    prediction = predictions()[name]
    leaves = jax.tree.leaves(prediction.variables)
    params = flatten_dict(prediction.variables["params"])
    for tensor, view in zip(prediction.graph.tensors, prediction.views, strict=True):
        assert leaves[view.parameter] is params[tensor.path]
        assert view.read(leaves[view.parameter]).shape == tensor.shape


@pytest.mark.parametrize("name", ["architecture", "module"])
def test_kernels_are_found_in_the_variables(name):
    prediction = predictions()[name]
    layers = layer_order(prediction.graph, prediction.views)
    assert layers[-1].is_classifier
    result = postprocess(prediction.variables, layers)
    first = np.asarray(flatten_dict(result.variables["params"])[layers[0].path])
    matrix = first.reshape(-1, first.shape[-1])  # (kh kw in, out): orthonormal columns
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(first.shape[-1]), atol=1e-5)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        predictions()["module"].network = None


def test_a_plan_and_its_graph_are_checked():
    plan = lower(ARCHITECTURE, 8, 10)
    graph = build_graph(plan)
    with pytest.raises(ValueError, match="^plan is Architecture.*, expected a plan"):
        ghn().predict_plan(ARCHITECTURE, graph)
    with pytest.raises(ValueError, match="^graph is None, expected an ArchGraph$"):
        ghn().predict_plan(plan, None)
    with pytest.raises(ValueError, match="^plan has num_classes 7, expected 10, as the GHN"):
        ghn().predict_plan(lower(ARCHITECTURE, 8, 7), graph)
    count = len(graph.tensors)
    fewer = ArchGraph(graph.graph, graph.tensors[:-1])
    with pytest.raises(
        ValueError, match=f"^graph has {count - 1} tensors, expected the .* {count}$"
    ):
        ghn().predict_plan(plan, fewer)
    swapped = ArchGraph(graph.graph, (*graph.tensors[1::-1], *graph.tensors[2:]))
    with pytest.raises(ValueError, match="^graph has the scale stem_norm/scale of shape .*, exp"):
        ghn().predict_plan(plan, swapped)


def test_a_network_without_a_parameter_to_predict():
    def scale(params, x):
        return jnp.maximum(x, params["floor"])

    floor = {"floor": np.zeros((1, 4), np.float32)}
    with pytest.raises(ValueError, match="^no parameter of network can be predicted:\n0 of 4 par"):
        ghn().predict(scale, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=floor)
