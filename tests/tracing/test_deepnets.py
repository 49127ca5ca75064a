"""Traced DeepNets architectures equal the graphs of their plans, and of the original."""

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
from architecture_samples import ONE_OP, VARIANTS
from graph_comparison import assert_equal_graphs, match_nodes
from reference_predictions import find_reference, find_split, load_ghn

from ghn_jax.architectures import RESNET50, VIT
from ghn_jax.graphs import PRIMITIVES
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.models import build
from ghn_jax.prediction import predict_network
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.targets.plan import lower
from ghn_jax.tracing import trace

SAMPLES = {**ONE_OP, **VARIANTS, "resnet50": RESNET50, "vit": VIT}
SPLITS = ("val", "test", "wide", "deep", "dense", "bnfree")


def assert_traced_equals_plan(architecture, image_size=32, num_classes=10):
    plan = lower(architecture, image_size, num_classes)
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    traced = trace(TargetNetwork(plan), images, num_classes=num_classes)
    assert_equal_graphs(build_graph(plan), traced.graph)
    parameters = np.flatnonzero(traced.description.is_parameter)
    assert not set(parameters) & set(traced.kept)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "none"])
def test_every_operation_and_variant(name):
    assert_traced_equals_plan(SAMPLES[name])


@pytest.mark.parametrize("name", ["msa", "stem 1", "resnet50", "stem pool"])
def test_large_images(name):
    assert_traced_equals_plan(SAMPLES[name], 224, 1000)


@pytest.mark.reference
@pytest.mark.parametrize("split", SPLITS)
def test_the_first_network_of_every_split(split):
    assert_traced_equals_plan(find_split(split).architecture(0))


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("split", SPLITS)
def test_all_networks_of_a_split(split):
    nets = find_split(split)
    for index in range(len(nets)):
        assert_traced_equals_plan(nets.architecture(index))


REFERENCES = {  # name: (architecture, image size, classes)
    "resnet50_ghn2": (RESNET50, 32, 10),
    "vit_ghn2": (VIT, 32, 10),
    "resnet50_imagenet": (RESNET50, 224, 1000),
}


def target(name):
    architecture, image_size, num_classes = REFERENCES[name]
    return TargetNetwork(lower(architecture, image_size, num_classes))


def reference_graph(arrays):
    graph = networkx.DiGraph()
    for node, primitive in enumerate(arrays["primitive"]):
        graph.add_node(node, key=PRIMITIVES[primitive])
    own = arrays["edges"][arrays["edges"][:, 2] == 1]
    graph.add_edges_from(own[:, :2].tolist())
    return graph


@pytest.mark.reference
@pytest.mark.parametrize("name", REFERENCES)
def test_graphs_of_the_original(name):
    with np.load(find_reference(f"predict_{name}.npz")) as file:
        arrays = dict(file)
    _, image_size, num_classes = REFERENCES[name]
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    traced = trace(target(name), images, num_classes=num_classes)
    found = traced.graph.to_networkx()
    for _, attributes in found.nodes(data=True):
        attributes["key"] = attributes["primitive"]
    mapping = match_nodes(reference_graph(arrays), found)
    order = [mapping[node] for node in range(len(mapping))]
    expected = np.zeros((len(order), len(order)), np.uint8)
    senders, receivers, distances = arrays["edges"].T
    expected[receivers, senders] = distances
    np.testing.assert_array_equal(traced.graph.distance_matrix()[np.ix_(order, order)], expected)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["resnet50_ghn2", "resnet50_imagenet"])
def test_the_flax_resnet50_has_the_graph_of_the_original(name):
    _, image_size, num_classes = REFERENCES[name]
    module = build("resnet50", num_classes, small_images=image_size == 32)
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    with np.load(find_reference(f"predict_{name}.npz")) as file:
        expected = reference_graph(file)
    found = trace(module, images, num_classes=num_classes).graph.to_networkx()
    for _, attributes in found.nodes(data=True):
        attributes["key"] = attributes["primitive"]
    match_nodes(expected, found)


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("name", REFERENCES)
def test_logits_of_the_original(name):
    with np.load(find_reference(f"predict_{name}.npz")) as file:
        expected = file["logits_float64"]
    if name.endswith("imagenet"):
        image = np.load(find_reference("image224.npy"))
        images = np.concatenate([image, image[:, :, ::-1]])
    else:
        images = np.load(find_reference("images.npz"))["images"]
    checkpoint = load_ghn("ghn2_imagenet" if name.endswith("imagenet") else "ghn2")
    predicted = predict_network(
        Predictor(checkpoint.config),
        checkpoint.variables["params"],
        target(name),
        images,
        strict=True,
    )
    params = {"params": predicted.variables["params"]}
    logits = np.asarray(jax.jit(predicted.network.apply)(params, images))
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert np.abs(logits - expected).max() < 1e-4 * spread
