"""Inputs of the network's own: which hold the batch, whose name is whose, whose error it is."""

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ghn_jax
from ghn_jax.tracing import trace

X = np.ones((4, 8), np.float32)


class Named(nn.Module):
    """Uses its own `key` to choose a branch."""

    @nn.compact
    def __call__(self, x, key=None):
        return nn.Dense(3, name="with_key" if key is not None else "without")(x)


class Two(nn.Module):
    @nn.compact
    def __call__(self, a, b, *, lengths=None):
        y = nn.Dense(3, name="a")(a) + nn.Dense(3, name="b")(b)
        return y if lengths is None else y / lengths[:, None]


def paths(traced):
    return sorted("/".join(tensor.path) for tensor in traced.graph.tensors)


ALL_OF_TWO = ["a/bias", "a/kernel", "b/bias", "b/kernel"]


def test_a_name_that_is_also_ours():
    with pytest.raises(ValueError, match=r"^key is an argument of predict and one of the network"):
        trace(Named(), X, key=jax.random.key(0))
    own = {"key": jax.random.key(1)}
    assert paths(trace(Named(), X, call_kwargs=own)) == ["with_key/bias", "with_key/kernel"]
    ours = trace(Named(), X, key=jax.random.key(0), call_kwargs={})
    assert paths(ours) == ["without/bias", "without/kernel"]
    with pytest.raises(ValueError, match="^lengths is given twice, by its name and in call_kwargs"):
        trace(Two(), X, call_args=(X,), lengths=X[:, 0], call_kwargs={"lengths": X[:, 0]})


def test_further_inputs_hold_the_batch():
    lengths = np.ones(4, np.float32)
    assert paths(trace(Two(), X, call_args=(X,), lengths=lengths)) == ALL_OF_TWO
    assert paths(trace(Two(), X, b=jax.ShapeDtypeStruct((4, 5), jnp.float32))) == ALL_OF_TWO
    assert paths(trace(Two(), None, call_kwargs={"a": X, "b": X})) == ALL_OF_TWO


def test_trees_and_shapes():
    def apply(params, x, table):
        return (x["a"] * x["b"]) @ params["w"] + table.sum()

    params = {"w": np.ones((8, 3), np.float32)}
    table = np.ones((7, 2), np.float32)  # of another length: not of the batch
    traced = trace(apply, {"a": (4, 8), "b": (4, 8)}, params=params, table=table)
    assert paths(traced) == ["w"]
    assert paths(trace(nn.Dense(3), (4, 8))) == ["bias", "kernel"]


def test_errors_speak_of_the_callers_batch():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x) + jnp.ones((5, 3))

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x) + jnp.ones((4, 3))

    with pytest.raises((TypeError, ValueError), match=r"4, ?3") as caught:
        trace(Wrong(), X)
    assert "1009" not in str(caught.value)
    with pytest.raises(ValueError, match="^network runs on the batch of 4 that is given, but not"):
        trace(Fixed(), X)


class RngsAtTheCall(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x, rngs):
        return self.head(self.dropout(nnx.relu(self.hidden(x)), rngs=rngs))


def test_nnx_rngs_at_the_call():
    rngs = nnx.Rngs(0)
    before = int(rngs.default.count[...])
    traced = trace(RngsAtTheCall(nnx.Rngs(0)), X, rngs=rngs)
    assert paths(traced) == ["head/bias", "head/kernel", "hidden/bias", "hidden/kernel"]
    assert int(rngs.default.count[...]) == before  # the caller's stays


def test_nnx_state_of_split_as_params():
    graph, state = nnx.split(nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    traced = trace(lambda state, x: nnx.merge(graph, state)(x), X, params=state)
    assert paths(traced) == ["bias", "scale"]


def test_predict_without_jit():
    with jax.disable_jit():
        prediction = ghn_jax.load("digits").predict(nn.Dense(10), X, strict=True)
    assert prediction.num_parameters == 8 * 10 + 10


class ByKeyword(nn.Module):
    @nn.compact
    def __call__(self, *, image, scale=1.0):
        return scale * nn.Dense(10)(image)


def test_images_by_keyword_only():
    ghn = ghn_jax.load("digits")
    found = ghn.predict(ByKeyword(), image=X, scale=2.0)
    expected = ghn.predict(ByKeyword(), call_kwargs={"image": X, "scale": 2.0})
    assert found.num_parameters == 8 * 10 + 10
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    apply = lambda params, *, x: x @ params["w"]  # noqa: E731
    assert paths(trace(apply, params={"w": np.ones((8, 3), np.float32)}, x=X)) == ["w"]
    with pytest.raises(ValueError, match="^images is missing, expected a batch of images"):
        ghn.predict(ByKeyword(), scale=2.0)
    with pytest.raises(TypeError, match="noise"):  # the network's own error
        trace(ByKeyword(), noise=X)


class Recurrent(equinox.Module):
    """Has a `state` that is an input like any other."""

    first: equinox.nn.Linear = equinox.nn.Linear(8, 5, key=jax.random.key(0))
    second: equinox.nn.Linear = equinox.nn.Linear(5, 5, key=jax.random.key(1))

    def __call__(self, x, state):
        return jnp.tanh(self.first(x) + self.second(state))


def test_an_equinox_input_called_state():
    for state in (np.ones((4, 5), np.float32), np.ones(5, np.float32)):  # of the batch, of all
        traced = trace(Recurrent(), X, state=state)
        assert {"first/bias", "first/weight"} <= set(paths(traced))
        # Only what is given for every image is data, with which `second` is a layer.
        assert ("second/weight" in paths(traced)) == (state.ndim == 2)
