"""Initialisations of a network: which parts come from where."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import ghn_jax
from ghn_jax.evaluation.architecture_specs import resolve_module
from ghn_jax.finetune.diagnosis import diagnose, draw_diagnosis
from ghn_jax.finetune.initialization import NetworkInitializer
from ghn_jax.models import build


@pytest.fixture(scope="module")
def ghn():
    return ghn_jax.load("digits")


@pytest.fixture(scope="module")
def made(ghn):
    """Variables by (initialisation, seed) of a small ViT, its classifier random."""
    initializer = NetworkInitializer(build("small_vit", 10), ghn, 8, 10, classifier="random")
    inits = ("random", "ghn", "ghn-noise", "ghn-orth")
    return initializer, {
        (init, seed): initializer.make(init, jax.random.key(seed))
        for init in inits
        for seed in (0, 1)
    }


def kernel(variables, *path):
    leaf = variables["params"]
    for name in path:
        leaf = leaf[name]
    return leaf


def test_what_is_predicted_does_not_depend_on_the_seed_and_the_classifier_does(made):
    _, variables = made
    inner = ("layer3", "Dense_0", "kernel")  # of the second half
    for init, is_seeded in (("random", True), ("ghn", False), ("ghn-noise", True)):
        one, other = (kernel(variables[init, seed], *inner) for seed in (0, 1))
        assert np.array_equal(one, other) != is_seeded, init
    for init in ("ghn", "ghn-noise", "ghn-orth"):
        for seed in (0, 1):
            np.testing.assert_array_equal(
                kernel(variables[init, seed], "head", "kernel"),
                kernel(variables["random", seed], "head", "kernel"),
            )
    predicted = kernel(variables["ghn", 0], *inner)
    noise = kernel(variables["ghn-noise", 0], *inner) - predicted
    assert 0 < np.abs(noise).max() < 1e-3 * np.abs(predicted).max()


def test_predictions_are_the_ghns(made, ghn):
    _, variables = made
    images = np.zeros((1, 8, 8, 3), np.float32)
    expected = ghn.predict(build("small_vit", 10), images).variables
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        names = tuple(key.key for key in path)[1:]
        if names[0] != "head":
            np.testing.assert_array_equal(kernel(variables["ghn", 0], *names), leaf)


def test_the_second_half_becomes_orthogonal(made):
    initializer, variables = made
    assert initializer.layers[-1].name == "head/kernel" and initializer.layers[-1].is_classifier
    kernels = initializer.read_kernels(variables["ghn-orth", 0])
    before = initializer.read_kernels(variables["ghn", 0])
    first = (len(kernels) - 1) // 2
    for number, (new, old) in enumerate(zip(kernels, before, strict=True)):
        if number < first or number == len(kernels) - 1:
            np.testing.assert_array_equal(new, old)
        else:
            singular = np.linalg.svd(new.reshape(-1, new.shape[-1]), compute_uv=False)
            np.testing.assert_allclose(singular, 1, atol=1e-4)


def test_diagnosis_tells_predicted_from_random_and_orthogonal_ones(made, tmp_path):
    initializer, variables = made
    means = {}
    diagnoses = {}
    for init in ("random", "ghn", "ghn-orth"):
        kernels = initializer.read_kernels(variables[init, 0])
        diagnoses[init] = diagnose(initializer.layers, kernels)
        means[init] = {
            f: np.mean([getattr(d, f) for d in diagnoses[init]]) for f in ("rank", "norm")
        }
        for diagnosis, one in zip(diagnoses[init], kernels, strict=True):
            filters = np.float64(one).reshape(-1, one.shape[-1]).T
            off = ~np.eye(len(filters), dtype=bool)
            expected = np.abs(np.corrcoef(filters)[off]).mean()
            assert diagnosis.correlation == pytest.approx(expected, rel=1e-3)
            squares = np.linalg.svd(filters, compute_uv=False) ** 2
            rank = squares.sum() / squares.max() / min(filters.shape)
            assert diagnosis.rank == pytest.approx(rank, rel=1e-3)
            he = np.sqrt(2 / filters.shape[1] * filters.size)
            assert diagnosis.norm == pytest.approx(np.linalg.norm(filters) / he, rel=1e-3)
    assert means["ghn"]["rank"] < means["random"]["rank"] < means["ghn-orth"]["rank"]
    draw_diagnosis(diagnoses, tmp_path / "diagnosis.svg", "small_vit")
    assert "ghn-orth" in (tmp_path / "diagnosis.svg").read_text()


def test_other_numbers_of_classes_leave_the_classifier_random(ghn):
    initializer = NetworkInitializer(build("small_vit", 7), ghn, 8, 7)
    one, other = (initializer.make("ghn", jax.random.key(seed)) for seed in (0, 1))
    assert one["params"]["head"]["kernel"].shape == (32, 7)
    assert not np.array_equal(one["params"]["head"]["kernel"], other["params"]["head"]["kernel"])
    with pytest.raises(ValueError, match="classifier is 'predicted', expected 'random': the GHN"):
        NetworkInitializer(build("small_vit", 7), ghn, 8, 7, classifier="predicted")


def test_a_network_of_the_space(ghn):
    module = resolve_module("vit", 8, 10)
    initializer = NetworkInitializer(module, ghn, 8, 10, classifier="predicted")
    variables = initializer.make("ghn", jax.random.key(0))
    expected = ghn.predict(module.plan.architecture, 8).variables
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        found = variables
        for key in path:
            found = found[key.key]
        np.testing.assert_allclose(found, leaf, rtol=1e-4, atol=1e-6)


def test_errors(ghn):
    class Headless(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            return nn.Conv(10, (3, 3))(nn.relu(nn.Conv(8, (3, 3))(x)))

    with pytest.raises(ValueError, match="architecture Headless has no classifier, expected its"):
        NetworkInitializer(Headless(), ghn, 8, 10)
    with pytest.raises(ValueError, match="architecture VisionTransformer has no classifier"):
        NetworkInitializer(build("small_vit", 12), ghn, 8, 10)
    with pytest.raises(ValueError, match=r"first_layer is 26, expected 'auto' or an int in 1..25"):
        NetworkInitializer(build("small_vit", 10), ghn, 8, 10, first_layer=26)
    module = build("small_vit", 10)
    for arguments, text in (
        (("small_vit", ghn, 8, 10), "module is 'small_vit', expected a Flax linen module"),
        ((module, ghn, 0, 10), "image_size is 0, expected a positive int"),
        ((module, ghn, 8, 10.0), "num_classes is 10.0, expected a positive int"),
    ):
        with pytest.raises(ValueError, match=f"^{text}"):
            NetworkInitializer(*arguments)
    # Also where only 'random' is asked for, which needs neither.
    with pytest.raises(ValueError, match="^noise_beta is -1, expected a finite number"):
        NetworkInitializer(module, None, 8, 10, noise_beta=-1)
    with pytest.raises(ValueError, match="^first_layer is 'half', expected 'auto' or a positive"):
        NetworkInitializer(module, None, 8, 10, first_layer="half")
    without = NetworkInitializer(build("small_vit", 10), None, 8, 10)
    assert without.make("random", jax.random.key(0))["params"]
    with pytest.raises(ValueError, match="ghn is None, expected a GHN for every"):
        without.make("ghn", jax.random.key(0))
    with pytest.raises(ValueError, match="init is 'gnh'"):
        without.make("gnh", jax.random.key(0))
    with pytest.raises(ValueError, match="^key is 0, expected a key of jax.random.key"):
        without.make("random", 0)
