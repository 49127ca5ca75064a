"""State and kept parameters: what the network's own initialiser gives on the given images."""

import functools

import equinox
import flax.linen as nn
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ghn_jax
from ghn_jax.tracing.initial_values import compute_outputs, draw_images

RNG = np.random.default_rng(0)
IMAGES = (1.5 + RNG.standard_normal((3, 8, 8, 3))).astype(np.float32)


@functools.cache
def ghn():
    return ghn_jax.load("digits")


def predict(network, images=IMAGES, **arguments):
    return ghn().predict(network, images, **arguments)


@pytest.fixture
def compilations():
    found = []

    def listen(name, seconds, **_):
        if "backend_compile" in name:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def standard_promotion():
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def test_haikus_moving_averages(standard_promotion, compilations):
    calls = []

    def forward(x, is_training):
        calls.append(x.shape)
        x = haiku.BatchNorm(True, True, 0.9, name="norm")(x, is_training)
        return haiku.Linear(10)(x.mean((1, 2)))

    transform = haiku.transform_with_state(forward)
    _, state = predict(transform, is_training=True).variables
    # A first update from zero, with Adam's correction, is the statistic of the batch.
    mean, var = IMAGES.mean((0, 1, 2)), IMAGES.var((0, 1, 2))
    found = {name: state[f"norm/~/{name}"]["average"].ravel() for name in ("mean_ema", "var_ema")}
    np.testing.assert_allclose(found["mean_ema"], mean, rtol=1e-4)
    np.testing.assert_allclose(found["var_ema"], var, rtol=1e-4)
    _, expected = transform.init(jax.random.key(0), IMAGES, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, expected)
    calls.clear()
    compilations.clear()
    predict(transform, is_training=True)
    assert compilations == []
    assert len(calls) == 1


class Stateful(nn.Module):
    """Its state is computed from images, or has as many rows as they."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("state", "mean", lambda: x.mean((0, 1, 2)))
        self.variable("cache", "last", jnp.zeros, x.shape[:2])
        return nn.Dense(10)((x - mean.value[None, None, None]).mean((1, 2)))


def test_flax_state_is_that_of_the_images():
    variables = predict(Stateful()).variables
    np.testing.assert_allclose(variables["state"]["mean"], IMAGES.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(variables["cache"]["last"], np.zeros((3, 8)))


class Cached(nn.Module):
    """Has a cache with rows for the images, and a norm of a width."""

    width: int

    @nn.compact
    def __call__(self, x):
        CALLS.append(x.shape)
        self.variable("cache", "last", lambda: jnp.full((2, 2 * x.shape[0], 5), 3, jnp.int32))
        x = nn.BatchNorm(True, name="norm")(nn.Dense(self.width)(x.mean((1, 2))))
        return nn.Dense(10)(x)


def test_caches_of_one_number_are_read_off_the_tracing():
    # A norm of 1009 features, the prime that stands for the batch, makes that ambiguous.
    # Then the shapes are compared on the images given, and the state is traced on them.
    for width, num_tracings in ((16, 1), (1009, 3)):
        CALLS.clear()
        variables = predict(Cached(width)).variables
        expected = Cached(width).init(jax.random.key(0), IMAGES)
        shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
        assert shapes(variables) == shapes(expected)
        np.testing.assert_array_equal(variables["cache"]["last"], np.full((2, 6, 5), 3))
        np.testing.assert_array_equal(variables["batch_stats"]["norm"]["mean"], np.zeros(width))
        assert len(CALLS) - 1 == num_tracings  # and our own


def test_images_are_drawn_where_only_their_shape_is_given():
    shape = jax.ShapeDtypeStruct((64, 8, 8, 3), jnp.float32)
    mean = predict(Stateful(), shape).variables["state"]["mean"]
    assert 0 < np.abs(mean).max() < 0.1  # of 4096 standard normal numbers, deviation 0.016
    tokens = draw_images({"tokens": jax.ShapeDtypeStruct((2, 3), jnp.int32)})["tokens"]
    np.testing.assert_array_equal(tokens, np.zeros((2, 3), np.int32))


class Kept(nn.Module):
    """A kept parameter whose initialiser has a loop and a compiled function of its own."""

    @nn.compact
    def __call__(self, x):
        double = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y + x, jnp.zeros_like(x)))
        floor = self.param("floor", lambda key: double(jax.random.normal(key, (1, 10))))
        return jnp.maximum(nn.Dense(10)(x.mean((1, 2))), floor)


def test_a_second_prediction_compiles_nothing_for_kept_parameters(compilations):
    prediction = predict(Kept())
    expected = Kept().init(jax.random.key(0), IMAGES)["params"]["floor"]
    np.testing.assert_allclose(prediction.variables["params"]["floor"], expected, rtol=1e-6)
    compilations.clear()
    predict(Kept())
    assert compilations == []


class Looped(nn.Module):
    """Its state comes of a scan over the images and of a loop whose length they decide."""

    @nn.compact
    def __call__(self, x):
        CALLS.append(jax.config.jax_disable_jit)

        def start():
            total = jax.lax.scan(lambda c, y: (c + y.mean((0, 1)), None), jnp.zeros(3), x)[0]
            return jax.lax.while_loop(lambda y: y.sum() < 100, lambda y: 2 * y, total)

        state = self.variable("state", "total", start)
        floor = self.param("floor", nn.initializers.normal(1.0), (1, 10))
        x = jax.nn.gelu(x + state.value[None, None, None])
        return jnp.maximum(nn.Dense(10)(x.mean((1, 2))), floor)


@pytest.mark.parametrize("option", ["disable_jit", "debug_nans", "debug_infs"])
def test_options_of_jax_change_nothing(option):
    expected = predict(Looped(), key=jax.random.key(3))
    CALLS.clear()
    with getattr(jax, option)(True):
        found = predict(Looped(), key=jax.random.key(3))
    assert not any(CALLS)
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    total = IMAGES.mean((1, 2)).sum(0)
    total *= 2 ** np.ceil(np.log2(100 / total.sum()))
    np.testing.assert_allclose(found.variables["state"]["total"], total, rtol=1e-5)
    own = Looped().init(jax.random.key(3), IMAGES)["params"]["floor"]
    np.testing.assert_allclose(found.variables["params"]["floor"], own, rtol=1e-6)
    logits = found.network.apply(found.variables, IMAGES)
    assert found.report.predicted == ("Dense_0/bias", "Dense_0/kernel")
    assert np.isfinite(logits).all()


CALLS = []


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        CALLS.append(x.shape)
        return nn.Dense(10)(nn.BatchNorm(True)(x).mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(3, 10, rngs=nnx.Rngs(0))

    def __call__(self, x):
        CALLS.append(x.shape)
        return self.dense(self.norm(x).mean((1, 2)))


class Equinox(equinox.Module):
    dense: equinox.nn.Linear = equinox.nn.Linear(3, 10, key=jax.random.key(0))

    def __call__(self, x):
        CALLS.append(x.shape)
        return self.dense(x.mean((0, 1)))


def function(params, x):
    CALLS.append(x.shape)
    return x.mean((1, 2)) @ params["w"]


@pytest.mark.parametrize("kind", ["linen", "nnx", "equinox", "function"])
def test_a_second_prediction_traces_once_and_compiles_nothing(kind, compilations):
    arguments = {"params": {"w": np.ones((3, 10), np.float32)}} if kind == "function" else {}
    networks = {"linen": Linen, "nnx": Nnx, "equinox": Equinox, "function": lambda: function}
    network = networks[kind]()
    predict(network, **arguments)
    CALLS.clear()
    compilations.clear()
    predict(network, **arguments)
    assert len(CALLS) == 1
    assert compilations == []


def test_loops_and_branches_are_run_as_they_are():
    def function(x, flag):
        carry, ys = jax.lax.scan(lambda c, y: (c + y, c * y), x[0], x, reverse=True)
        chosen = jax.lax.cond(flag, lambda a: a + 1, lambda a: a - 1, carry)
        until = jax.lax.while_loop(lambda a: a.sum() < 100, lambda a: 2 * a, chosen)
        return chosen, ys, until, jax.nn.relu(x)

    x = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    for flag in (np.bool_(False), np.bool_(True)):
        jaxpr = jax.make_jaxpr(function)(x, flag)
        chosen, ys, until, rectified = compute_outputs(jaxpr, range(4), [x, flag])
        # x[0] and the rows from the last: 1 + 5 + 3 + 1 = 10 and 2 + 6 + 4 + 2 = 14.
        end = np.array([10, 14]) + (1 if flag else -1)
        np.testing.assert_array_equal(chosen, end)
        np.testing.assert_array_equal(ys, [[9, 24], [18, 32], [5, 12]])
        np.testing.assert_array_equal(until, end * (8 if end.sum() < 25 else 4))
        np.testing.assert_array_equal(rectified, x)
