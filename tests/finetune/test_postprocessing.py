"""Post-processing: against numpy written out, on variables of every library, and its errors."""

import equinox
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import ghn_jax
from ghn_jax.finetune import layer_order, postprocess
from ghn_jax.finetune.layers import Kernels
from ghn_jax.finetune.postprocessing import find_first_layer, measure
from ghn_jax.tracing import trace


class Net(nn.Module):
    """Two convolutions, norm, attention and a head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), name="zeroth")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.relu(nn.Conv(16, (1, 1), name="first")(x))
        x = x.reshape(x.shape[0], -1, 16)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x)
        return nn.Dense(10, name="head")(x.mean(1))


IMAGES = jax.ShapeDtypeStruct((1, 4, 4, 3), np.float32)


@pytest.fixture(scope="module")
def traced():
    return trace(Net(), IMAGES, num_classes=10)


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(
        np.asarray, Net().init(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32))
    )


def as_pytorch(kernel):
    """(kh, kw, in, out) or (in, out) as (out, in kh kw), tall."""
    matrix = np.moveaxis(np.asarray(kernel, np.float64), (-1, -2), (0, 1))
    matrix = matrix.reshape(matrix.shape[0], -1)
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def test_order_is_that_of_the_graph_with_the_classifier_last(traced):
    layers = layer_order(traced.graph, traced.views)
    names = [layer.name for layer in layers]
    assert names[:2] == ["zeroth/kernel", "first/kernel"] and names[-1] == "head/kernel"
    assert sorted(names[2:5]) == sorted(f"attention/{n}/kernel" for n in ("query", "key", "value"))
    assert names[5] == "attention/out/kernel"
    assert [layer.is_classifier for layer in layers] == [False] * 6 + [True]
    # Attention's kernels are stored (in, heads, size) and (heads, size, out).
    assert {layer.shape[-2:] for layer in layers[2:6]} == {(16, 16)}


def test_every_kernel_but_the_classifier_becomes_orthogonal(traced, variables):
    layers = layer_order(traced.graph, traced.views)
    result = postprocess(variables, layers)
    assert [change.is_changed for change in result.changes] == [True] * 6
    new = Kernels(result.variables, layers)
    for number, change in enumerate(result.changes):
        matrix = as_pytorch(new.read(number))
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-5)
        assert change.after.largest_eigenvalue == pytest.approx(1, abs=1e-5)
        assert change.number == number + 1
    # Everything else is as it was, and the variables given are untouched.
    changed = {layer.path for layer in layers[:-1]}
    for path, leaf in jax.tree_util.tree_leaves_with_path(result.variables):
        names = tuple(key.key for key in path)[1:]
        old = variables
        for key in path:
            old = old[key.key]
        assert (names in changed) != np.array_equal(leaf, old), names


def test_statistics_are_numpys(variables):
    for path in (("zeroth", "kernel"), ("first", "kernel"), ("head", "kernel")):
        kernel = variables["params"][path[0]][path[1]]
        matrix = as_pytorch(kernel)
        correlation = np.corrcoef(matrix)
        found = measure(kernel)
        off = correlation[~np.eye(len(correlation), dtype=bool)]
        assert found.correlation == pytest.approx(np.abs(off).mean(), rel=1e-4)
        assert found.correlation_std == pytest.approx(correlation.std(ddof=1), rel=1e-4)
        largest = np.linalg.eigvalsh(matrix.T @ matrix).max()
        assert found.largest_eigenvalue == pytest.approx(largest, rel=1e-4)


def test_noise_has_the_standard_deviation_of_the_correlation_times_beta():
    kernel = np.random.default_rng(0).normal(1, 0.1, (3, 3, 64, 128)).astype(np.float32)
    variables = {"a": kernel, "head": np.eye(4, dtype=np.float32)}
    result = postprocess(variables, ["a", "head"], orthogonalize=False, noise_beta=0.5)
    noise = result.variables["a"] - kernel
    expected = 0.5 * np.corrcoef(as_pytorch(kernel)).std(ddof=1)
    assert noise.std() == pytest.approx(expected, rel=0.02)
    assert abs(noise.mean()) < 0.02 * expected
    other = postprocess(
        variables, ["a", "head"], orthogonalize=False, noise_beta=0.5, key=jax.random.key(1)
    )
    assert not np.array_equal(result.variables["a"], other.variables["a"])
    nothing = postprocess(variables, ["a", "head"], orthogonalize=False)
    np.testing.assert_array_equal(nothing.variables["a"], kernel)
    assert not nothing.changes[0].is_changed


def test_from_a_layer_on(traced, variables):
    layers = layer_order(traced.graph, traced.views)
    result = postprocess(variables, layers, first_layer=3)
    assert [change.is_changed for change in result.changes] == [False] * 2 + [True] * 4
    auto = postprocess(variables, layers, first_layer="auto")
    assert [change.is_changed for change in auto.changes] == [False] * 3 + [True] * 3
    assert find_first_layer("auto", 2) == 1 and find_first_layer(1, 2) == 1


def test_nnx_and_equinox():
    class NnxNet(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.head = nnx.Linear(8, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(self.conv(x).mean((1, 2)))

    network = NnxNet(nnx.Rngs(0))
    prediction = ghn_jax.load("digits").predict(network, IMAGES)
    layers = layer_order(prediction.graph, prediction.views)
    assert [layer.name for layer in layers] == ["conv/kernel", "head/kernel"]
    result = postprocess(prediction.variables, layers)
    nnx.update(network, result.variables)
    matrix = as_pytorch(network.conv.kernel[...])
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-5)
    expected = nnx.to_pure_dict(prediction.variables)["head"]["kernel"]
    np.testing.assert_array_equal(network.head.kernel[...], expected)

    class EquinoxNet(equinox.Module):
        conv: equinox.nn.Conv2d
        head: equinox.nn.Linear

        def __call__(self, x):
            return self.head(self.conv(x.transpose(2, 0, 1)).mean((1, 2)))

    keys = jax.random.split(jax.random.key(0))
    module = EquinoxNet(
        equinox.nn.Conv2d(3, 8, 3, key=keys[0]), equinox.nn.Linear(8, 10, key=keys[1])
    )
    prediction = ghn_jax.load("digits").predict(module, IMAGES)
    layers = layer_order(prediction.graph, prediction.views)
    result = postprocess(prediction.variables, layers)
    # Equinox stores PyTorch's layout: (out, in, kh, kw).
    matrix = np.asarray(result.variables.conv.weight).reshape(8, -1)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-5)


def test_errors(traced, variables):
    layers = layer_order(traced.graph, traced.views)
    with pytest.raises(ValueError, match=r"first_layer is 7, expected 'auto' or an int in 1..6"):
        postprocess(variables, layers, first_layer=7)
    with pytest.raises(ValueError, match="first_layer is 0, expected"):
        postprocess(variables, layers, first_layer=0)
    with pytest.raises(ValueError, match="noise_beta is -1, expected a finite number"):
        postprocess(variables, layers, noise_beta=-1)
    with pytest.raises(ValueError, match="^orthogonalize is 'yes', expected True or False"):
        postprocess(variables, layers, orthogonalize="yes")
    with pytest.raises(ValueError, match="^key is 3, expected a key of jax.random.key"):
        postprocess(variables, layers, noise_beta=1e-5, key=3)
    count = len(traced.graph.tensors)
    with pytest.raises(
        ValueError, match=f"^views has 1 views, expected one for .* {count} tensors"
    ):
        layer_order(traced.graph, traced.views[:1])
    with pytest.raises(ValueError, match="^graph is TracedNetwork.*, expected the graph of"):
        layer_order(traced)
    with pytest.raises(ValueError, match="order has 1 kernels, expected a classifier and"):
        postprocess(variables, layers[-1:])
    with pytest.raises(ValueError, match="order has the path 'second/kernel' of no array"):
        postprocess(variables, ["second/kernel", "head/kernel"])
    with pytest.raises(ValueError, match="order has the path 'bias' of 8 arrays"):
        postprocess(variables, ["bias", "head/kernel"])
    with pytest.raises(ValueError, match=r"'head/bias' of an array of shape \(10,\)"):
        postprocess(variables, ["head/bias", "head/kernel"])
