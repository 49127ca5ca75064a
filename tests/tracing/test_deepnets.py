"""Traced DeepNets architectures equal the graphs of their plans, and of the original."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architecture_samples import ONE_OP, VARIANTS
from graph_comparison import assert_equal_graphs, match_nodes
from reference_predictions import LOCAL, SHARED, find_reference, load_ghn, load_prediction

from ghn_jax.architectures import RESNET50, VIT
from ghn_jax.graphs import build_graph
from ghn_jax.hypernetworks.prediction import Predictor
from ghn_jax.interop.deepnets1m import DeepNets1M
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.targets.plan import lower
from ghn_jax.tracing import predict_network, trace

SAMPLES = {**ONE_OP, **VARIANTS, "resnet50": RESNET50, "vit": VIT}
SPLITS = ("val", "test", "wide", "deep", "dense", "bnfree")
_WITHOUT_SHARED = pytest.mark.skipif(not SHARED.exists(), reason="only with the shared folder")


def assert_traced_equals_plan(architecture, image_size=32, num_classes=10):
    plan = lower(architecture, image_size, num_classes)
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    traced = trace(TargetNetwork(plan), images, num_classes=num_classes)
    assert_equal_graphs(build_graph(plan), traced.graph)
    parameters = np.flatnonzero(traced.network.is_parameter)
    assert not set(parameters) & set(traced.kept)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "none"])
def test_every_operation_and_variant(name):
    assert_traced_equals_plan(SAMPLES[name])


@pytest.mark.parametrize("name", ["msa", "stem 1", "resnet50", "stem pool"])
def test_large_images(name):
    assert_traced_equals_plan(SAMPLES[name], 224, 1000)


def read_split(split):
    folder = SHARED if SHARED.exists() else LOCAL.parent
    return DeepNets1M(folder / "deepnets1m_eval.hdf5", split)


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_network_of_every_split(split):
    assert_traced_equals_plan(read_split(split)[0].architecture)


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_all_networks_of_a_split(split):
    for entry in read_split(split):
        assert_traced_equals_plan(entry.architecture)
