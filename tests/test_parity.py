"""The whole way from a file's graph to logits and hypernetwork gradients equals the original's.

Numbers are those of `shared/reference`, computed by the original; tests skip where it is absent.
"""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from reference_predictions import find_reference, load_ghn

from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.hypernetworks.prediction import Predictor
from ghn_jax.interop.deepnets1m import DeepNets1M
from ghn_jax.interop.torch_checkpoints import convert_state_dict
from ghn_jax.targets.plan import lower


def read(split, index, channels=None):
    """A plan at 32 px, and the file's graph with its tensors in the plan's order."""
    file = "deepnets1m_train.hdf5" if split == "train" else "deepnets1m_eval.hdf5"
    nets = DeepNets1M(find_reference(file).parent, split)
    architecture = nets.architecture(index)
    if channels is not None:
        architecture = type(architecture).from_official(nets.entry(index), channels=channels)
    plan = lower(architecture, 32, 10)
    graph = nets.graph(index, 10, architecture=architecture)
    assert [t.path for t in graph.tensors] == [t.path for t in plan.tensors]
    assert [t.shape for t in graph.tensors] == [t.shape for t in plan.tensors]
    return plan, graph


@pytest.mark.parametrize("name", ["test_0", "test_2", "dense_1"])
def test_logits_of_predicted_parameters(name):
    reference = np.load(find_reference(f"predict_{name}_ghn2.npz"))
    images = np.load(find_reference("images.npz"))["images"]
    checkpoint = load_ghn("ghn2")
    split, index = name.split("_")
    plan, graph = read(split, int(index))
    predictor = Predictor(checkpoint.config)
    ghn_params = checkpoint.variables["params"]
    (params,) = predictor.predict(ghn_params, predictor.prepare([graph]))
    logits = np.asarray(BlockwiseEngine().logits(plan, params, images))
    expected = reference["logits_float64"]
    # A constant offset may hide everything else: measure by how logits differ between images.
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert np.abs(logits - expected).max() < 1e-4 * spread


@pytest.mark.parametrize("name", ["ghn1", "ghn2"])
def test_gradients_of_one_training_step(x64, name):
    reference = np.load(find_reference(f"train_step_{name}_float64.npz"))
    data = np.load(find_reference("images.npz"))
    images, labels = data["images"].astype(np.float64), data["labels"].astype(np.int32)
    checkpoint = load_ghn(name)
    config = checkpoint.config
    as_double = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)  # noqa: E731
    ghn_params = as_double(checkpoint.variables["params"])
    channels = int(reference["C"])
    pairs = [read("train", int(index), channels) for index in reference["architectures"]]
    plans = [plan for plan, _ in pairs]
    predictor, engine = Predictor(config), BlockwiseEngine()
    prepared = predictor.prepare([graph for _, graph in pairs])
    params, pull_back = predictor.predict_with_pull_back(ghn_params, prepared)
    results = engine.loss_and_grads(plans, params, images, labels)
    np.testing.assert_allclose([r.loss for r in results], reference["losses"], rtol=1e-6)

    grads = pull_back([[np.asarray(g) / len(results) for g in r.grads] for r in results])
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(norm, reference["grad_norm"], rtol=1e-5)
    # Gradients are compared in our layout: those the file lacks come from the parameters
    # themselves.
    names = [key.removeprefix("grad/") for key in reference if key.startswith("grad/")]
    expected = convert_gradients(name, reference, config)
    found = {path: np.asarray(g) for path, g in flatten_dict(grads).items()}
    assert {g.dtype for g in found.values()} == {np.dtype(np.float64)}
    assert len(expected) == len(names) > 20
    for path, gradient in expected.items():
        scale = np.abs(gradient).max()
        error = np.abs(found[path] - gradient).max()
        assert error <= 1e-5 * scale, (
            f"{'/'.join(path)}: {error / scale:.1e} of the largest element"
        )


def convert_gradients(name, reference, config):
    """The file's gradients by path, through the same relayout as parameters."""
    state = official_state(name)
    marked = {key: np.full(np.shape(value), np.nan) for key, value in state.items()}
    for key in state:
        if f"grad/{key}" in reference:
            marked[key] = reference[f"grad/{key}"]
    converted = flatten_dict(convert_state_dict(marked, config)["params"])
    return {path: g for path, g in converted.items() if not np.isnan(g).any()}


def official_state(name):
    from ghn_jax.interop.torch_files import read_torch_file

    return read_torch_file(find_reference(f"{name}.pt"))["state_dict"]
