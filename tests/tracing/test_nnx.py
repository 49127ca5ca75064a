"""Idioms of NNX: each predicted as a whole, with a network that runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ghn_jax

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
MLP_PATHS = "head/bias head/kernel hidden/bias hidden/kernel norm/bias norm/scale".split()


@functools.cache
def ghn():
    return ghn_jax.load("digits")


def predict(network, **arguments):
    prediction = ghn().predict(network, X, strict=True, **arguments)
    assert all(why.startswith("no parameter but") for why in prediction.report.kept.values())
    return prediction


def assert_finite(outputs, shape=(4, 10)):
    assert outputs.shape == shape and np.isfinite(outputs).all()
    assert np.ptp(np.asarray(outputs)) > 0


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def test_training_mode():
    module = Mlp(nnx.Rngs(0))
    prediction = predict(module)
    assert list(prediction.report.predicted) == MLP_PATHS
    state = ["dropout/rngs/count", "dropout/rngs/key", "norm/mean", "norm/var"]
    assert list(prediction.report.kept) == state
    # Neither the caller's module nor the one that is returned was run.
    for network in (module, prediction.network):
        np.testing.assert_array_equal(network.norm.mean[...], np.zeros(16))
        assert int(network.dropout.rngs.count[...]) == 0
    dropped = prediction.network(X)
    assert_finite(dropped)
    assert not np.allclose(dropped, prediction.network(X))
    prediction.network.eval()
    np.testing.assert_array_equal(prediction.network(X), prediction.network(X))


def test_dropout_with_rngs_at_the_call():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5)
            self.head = nnx.Linear(8, 10, rngs=rngs)

        def __call__(self, x, rngs):
            return self.head(self.dropout(x, rngs=rngs))

    for arguments in ({"rngs": nnx.Rngs(dropout=1)}, {"call_args": (nnx.Rngs(1),)}):
        prediction = predict(Net(nnx.Rngs(0)), **arguments)
        assert prediction.report.predicted == ("head/bias", "head/kernel")
        assert prediction.report.kept == {}
        assert_finite(prediction.network(X, nnx.Rngs(2)))


def test_split_and_merge():
    graphdef, state = nnx.split(Mlp(nnx.Rngs(0)))

    def apply(state, x):
        return nnx.merge(graphdef, state)(x)

    prediction = predict(apply, params=state)
    assert list(prediction.report.predicted) == MLP_PATHS
    assert jax.tree.structure(prediction.variables) == jax.tree.structure(state)
    assert_finite(apply(prediction.variables, X))
    expected = predict(Mlp(nnx.Rngs(0))).variables
    jax.tree.map(
        np.testing.assert_array_equal,
        prediction.variables.filter(nnx.Param),
        expected.filter(nnx.Param),
    )


def test_state_that_a_function_closes_over():
    graphdef, params, state = nnx.split(Mlp(nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, x, copy=True):
        return nnx.merge(graphdef, params, state, copy=copy)(x)

    prediction = predict(apply, params=params)
    assert list(prediction.report.predicted) == MLP_PATHS and not prediction.report.kept
    assert_finite(apply(prediction.variables, X))
    np.testing.assert_array_equal(state["norm"]["mean"][...], np.zeros(16))
    expected = r"^network changes state that it closes over, .* copy=True\) .*: Cannot mutate"
    with pytest.raises(ValueError, match=expected):
        predict(apply, params=params, copy=False)


def make_layers(rngs, num_out=8):
    create = lambda rngs: nnx.Linear(8, num_out, rngs=rngs)  # noqa: E731
    return nnx.split_rngs(splits=3)(nnx.vmap(create))(rngs)


def test_a_scan_over_layers():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = make_layers(rngs)
            self.head = nnx.Linear(8, 10, rngs=rngs)

        def __call__(self, x):
            step = lambda x, layer: nnx.relu(layer(x))  # noqa: E731
            return self.head(nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, self.layers))  # fmt: skip

    prediction = predict(Net(nnx.Rngs(0)))
    names = ("head/bias", "head/kernel", "layers/bias", "layers/kernel")
    assert prediction.report.predicted == names
    kernels = [t for t in prediction.graph.tensors if t.path == ("layers", "kernel")]
    assert len(kernels) == 3  # a layer each
    network, y = prediction.network, X
    for kernel, bias in zip(network.layers.kernel[...], network.layers.bias[...], strict=True):
        y = np.maximum(y @ kernel + np.asarray(bias)[None], 0)
    expected = y @ network.head.kernel[...] + np.asarray(network.head.bias[...])[None]
    np.testing.assert_allclose(network(X), expected, rtol=1e-4, atol=1e-5)
    assert_finite(network(X))


def test_a_vmap_over_layers():
    class Ensemble(nnx.Module):
        def __init__(self, rngs):
            self.layers = make_layers(rngs, 10)

        def __call__(self, x):
            apply = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
            return apply(self.layers, x).mean(0)

    prediction = predict(Ensemble(nnx.Rngs(0)))
    assert prediction.report.predicted == ("layers/bias", "layers/kernel")
    assert prediction.network.layers.kernel[...].shape == (3, 8, 10)
    assert_finite(prediction.network(X))


class Listed(nnx.Module, pytree=False):
    def __init__(self, rngs, kind):
        self.layers = kind([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


class ListedPytree(nnx.Module):
    __init__, __call__ = Listed.__init__, Listed.__call__


@pytest.mark.parametrize("kind", ["nnx.List", "list", "tuple"])
def test_lists_of_layers(kind):
    # Only a module that is no pytree may hold a plain list of modules.
    kinds = {"nnx.List": (ListedPytree, nnx.List), "list": (Listed, list), "tuple": (Listed, tuple)}
    network, container = kinds[kind]
    prediction = predict(network(nnx.Rngs(0), container))
    layers = [f"layers/{index}/{name}" for index in range(2) for name in ("bias", "kernel")]
    assert list(prediction.report.predicted) == ["head/bias", "head/kernel", *layers]
    assert_finite(prediction.network(X))


def test_lora():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.LoRALinear(8, 16, lora_rank=2, rngs=rngs)
            self.head = nnx.LoRA(16, 3, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.hidden(x)))

    prediction = predict(Net(nnx.Rngs(0)))
    names = (
        "head/lora_a head/lora_b hidden/bias hidden/kernel hidden/lora/lora_a hidden/lora/lora_b"
    )
    assert list(prediction.report.predicted) == names.split()
    assert prediction.report.num_predicted == 16 * 3 + 3 * 10 + 16 + 8 * 16 + 8 * 2 + 2 * 16
    assert isinstance(prediction.network.head.lora_a, nnx.LoRAParam)
    assert_finite(prediction.network(X))


def test_shared_modules():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 8, rngs=rngs)
            self.second = self.first
            self.head = nnx.Linear(8, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(self.second(jnp.tanh(self.first(x))))

    prediction = predict(Net(nnx.Rngs(0)))
    names = ("first/bias", "first/kernel", "head/bias", "head/kernel")
    assert prediction.report.predicted == names
    assert prediction.network.second is prediction.network.first
    assert_finite(prediction.network(X))
