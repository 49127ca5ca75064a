"""Networks of every library, also some that no one here wrote: predicted whole and usable."""

import functools

import equinox
import flax.linen as nn
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict as flatten

import ghn_jax
from ghn_jax.graphs import PRIMITIVES
from ghn_jax.hypernetworks import ghn2
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.prediction import UnpredictedError, predict_network
from ghn_jax.tracing import calibrate_batch_stats, trace

IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)


@functools.cache
def ghn():
    predictor = Predictor(ghn2(hidden_size=8, max_shape=(8, 8, 7, 7)))
    return predictor, predictor.init(jax.random.key(0))


def predict(model, images=IMAGES, **arguments):
    return predict_network(*ghn(), model, images, **arguments)


def primitives(graph):
    return sorted(PRIMITIVES[p] for p in graph.primitive)


def assert_same_tree(found, expected):
    as_shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert as_shapes(found) == as_shapes(expected)


class Linen(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), dtype=jnp.float32, param_dtype=self.dtype, name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dense(10, name="head")(jnp.mean(nn.relu(x), axis=(1, 2)))


class Odd(nn.Module):
    """Has a parameter that no GHN predicts."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(3, name="dense")(x)
        return jnp.maximum(y, self.param("floor", nn.initializers.normal(1.0), (3,))[None])


def test_a_flax_module():
    module = Linen()
    prediction = predict(module, train=False)
    assert prediction.network is module
    assert_same_tree(prediction.variables, jax.eval_shape(module.init, jax.random.key(0), IMAGES))
    report = prediction.report
    assert "conv/kernel" in report.predicted
    assert {path: why for path, why in report.kept.items() if "state" not in why} == {}
    assert set(report.kept) == {"batch_stats/norm/mean", "batch_stats/norm/var"}
    np.testing.assert_array_equal(prediction.variables["batch_stats"]["norm"]["var"], np.ones(8))
    params = prediction.variables["params"]
    assert report.num_predicted == sum(x.size for x in jax.tree.leaves(params))
    # The classifier's kernel is decoded as one: no two of its columns are equal.
    kernel = params["head"]["kernel"]
    assert len(np.unique(kernel, axis=1).T) == 10
    logits = module.apply(prediction.variables, np.ones((2, 16, 16, 3), np.float32))
    assert np.isfinite(logits).all()


def test_dtypes_are_kept():
    prediction = predict(Linen(dtype=jnp.bfloat16))
    assert prediction.variables["params"]["conv"]["kernel"].dtype == jnp.bfloat16


def test_what_cannot_be_predicted_has_the_callers_initial_value():
    images = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    prediction = predict(Odd(), images, key=jax.random.key(3))
    expected = Odd().init(jax.random.key(3), np.zeros((2, 4), np.float32))["params"]["floor"]
    np.testing.assert_allclose(prediction.variables["params"]["floor"], expected, rtol=1e-6)
    assert prediction.report.predicted == ("dense/bias", "dense/kernel")
    assert list(prediction.report.kept) == ["floor"]
    assert str(prediction.report).splitlines() == [
        "15 of 18 parameters predicted, 2 tensors",
        "kept floor: meets the data in max, which has no rule for parameters",
    ]
    with pytest.raises(UnpredictedError, match="1 parameters cannot be predicted:\nfloor: meets"):
        predict(Odd(), images, strict=True)


def test_calibration_fills_running_statistics():
    module, rng = Linen(), np.random.default_rng(0)
    prediction = predict(module)
    batches = [rng.standard_normal((4, 16, 16, 3), dtype=np.float32) for _ in range(2)]
    variables = calibrate_batch_stats(module, prediction.variables, batches, train=True)
    conv = nn.Conv(8, (3, 3))
    moments = []
    for batch in batches:
        y = np.asarray(conv.apply({"params": variables["params"]["conv"]}, batch))
        moments.append((y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))))
    mean, var = np.mean(moments, axis=0)
    stats = variables["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-4)
    with pytest.raises(ValueError, match=r"batch_stats\['norm'\]\['mean'\] is not updated"):
        calibrate_batch_stats(module, prediction.variables, batches, train=False)
    with pytest.raises(ValueError, match="images is empty"):
        calibrate_batch_stats(module, prediction.variables, [], train=True)
    with pytest.raises(ValueError, match="expected batch_stats"):
        calibrate_batch_stats(module, {"params": {}}, batches)


def test_a_loaded_ghn_predicts_any_network():
    loaded = ghn_jax.load("digits")
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    prediction = loaded.predict(Linen(), images, train=False, strict=True)
    assert prediction.num_parameters == prediction.report.num_parameters
    direct = predict_network(loaded.predictor, loaded.ghn_params, Linen(), images)
    jax.tree.map(np.testing.assert_array_equal, prediction.variables, direct.variables)
    with pytest.raises(ValueError, match="images is missing"):
        loaded.predict(Linen())


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = x.reshape(x.shape[0], -1, 8)
        return self.head(jnp.mean(x + self.attention(x), axis=1))


def test_an_nnx_module():
    module = Nnx(nnx.Rngs(0))
    old = np.asarray(module.conv.kernel[...])
    prediction = predict(module, strict=True)
    np.testing.assert_array_equal(module.conv.kernel[...], old)  # the caller's stays
    assert_same_tree(prediction.variables, nnx.state(module))
    assert "conv/kernel" in prediction.report.predicted
    assert set(prediction.report.kept) >= {"norm/mean", "norm/var"}
    names = primitives(prediction.graph)
    assert names.count("msa") == names.count("bn") == names.count("glob_avg") == 1
    kernel = prediction.network.conv.kernel[...]
    assert kernel.shape == old.shape and not np.allclose(kernel, old)
    assert prediction.network(np.ones((2, 16, 16, 3), np.float32)).shape == (2, 10)


@pytest.fixture
def standard_promotion():
    # Moving averages of Haiku and Equinox mix integers and floats.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def test_haiku_networks(standard_promotion):

    def forward(images, is_training=True):
        return haiku.nets.ResNet18(10)(images, is_training)

    transform = haiku.transform_with_state(forward)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    prediction = predict(transform, images, strict=True)
    params, state = prediction.variables
    names = primitives(prediction.graph)
    # conv1, two per block, three shortcuts and the classifier; a norm per convolution.
    assert names.count("conv") == 1 + 16 + 3 + 1
    assert names.count("bn") == 1 + 16 + 3
    assert names.count("sum") == 8
    assert names.count("max_pool") == names.count("glob_avg") == 1
    logits, _ = jax.eval_shape(transform.apply, params, state, None, images)
    assert logits.shape == (2, 10)
    counters = [value for path, value in flatten(state).items() if path[-1] == "counter"]
    assert len(counters) == 2 * 20 and not any(counters)
    assert prediction.report.num_predicted == sum(x.size for x in jax.tree.leaves(params))


def test_a_haiku_network_without_state():

    def forward(x):
        return haiku.MultiHeadAttention(2, 4, w_init=haiku.initializers.Constant(1.0))(x, x, x)

    tokens = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
    prediction = predict(haiku.transform(forward), tokens, strict=True)
    assert primitives(prediction.graph).count("msa") == 1
    assert prediction.variables["multi_head_attention/query"]["w"].shape == (8, 8)


def test_an_equinox_module():

    class Net(equinox.Module):
        conv: equinox.nn.Conv2d
        norm: equinox.nn.GroupNorm
        pool: equinox.nn.MaxPool2d
        head: equinox.nn.MLP

        def __init__(self, key):
            keys = jax.random.split(key)
            self.conv = equinox.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
            self.norm = equinox.nn.GroupNorm(2, 8)
            self.pool = equinox.nn.MaxPool2d(2, 2)
            self.head = equinox.nn.MLP(8, 10, 16, 1, key=keys[1])

        def __call__(self, x):
            x = self.pool(jax.nn.relu(self.norm(self.conv(x))))
            return self.head(jnp.mean(x, axis=(1, 2)))

    module = Net(jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 3, 16, 16), jnp.float32)
    prediction = predict(module, images, strict=True)
    assert primitives(prediction.graph) == sorted(
        ["input", "conv", "bias", "ln", "max_pool", "glob_avg", "conv", "bias", "conv", "bias"]
    )
    assert_same_tree(
        equinox.filter(prediction.network, equinox.is_array),
        equinox.filter(module, equinox.is_array),
    )
    assert not np.allclose(prediction.network.conv.weight, module.conv.weight)
    assert prediction.network(np.ones((3, 16, 16), np.float32)).shape == (10,)


def test_an_equinox_module_with_state(standard_promotion):

    class Net(equinox.Module):
        norm: equinox.nn.BatchNorm
        head: equinox.nn.Linear

        def __init__(self, key):
            self.norm = equinox.nn.BatchNorm(3, axis_name="batch", mode="batch")
            self.head = equinox.nn.Linear(3, 10, key=key)

        def __call__(self, x, state):
            x, state = self.norm(x, state)
            return self.head(jnp.mean(x, axis=(1, 2))), state

    module, state = equinox.nn.make_with_state(Net)(jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 3, 16, 16), jnp.float32)
    for network in (module, equinox.nn.inference_mode(module)):
        prediction = predict(network, images, state=state)
        assert primitives(prediction.graph) == ["bias", "bn", "conv", "glob_avg", "input"]
        assert prediction.report.num_predicted == 3 + 3 + 30 + 10


def test_a_function():
    def apply(params, x):
        return jax.nn.relu(x @ params["layers"][0]) @ params["layers"][1]

    shapes = {"layers": [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 8), (8, 10))]}
    prediction = predict(apply, jax.ShapeDtypeStruct((2, 4), jnp.float32), params=shapes)
    assert prediction.report.predicted == ("layers/0", "layers/1")
    assert_same_tree(prediction.variables, shapes)


def test_a_function_needs_values_for_what_is_kept():
    def apply(params, x):
        return jnp.maximum(x @ params["w"], params["floor"][None])

    w = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    images = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    prediction = predict(apply, images, params={"w": w, "floor": np.full(3, 7, np.float32)})
    assert prediction.variables["floor"].tolist() == [7, 7, 7]
    floor = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(ValueError, match="floor cannot be predicted .* expected arrays"):
        predict(apply, images, params={"w": w, "floor": floor})


def test_a_network_of_a_size_seen_before_compiles_nothing():
    predictor, _ = ghn()
    predict(Linen())
    before = predictor.num_compilations

    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(24, (3, 3))(x))
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(16, (3, 3))(x))
            return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))

    predict(Other())
    assert predictor.num_compilations == before


def test_tracing_allocates_nothing():
    """A terabyte of parameters."""

    class Large(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(500_000)(nn.Dense(500_000)(x))

    traced = trace(Large(), jax.ShapeDtypeStruct((2, 4), jnp.float32))
    assert max(np.prod(t.shape) for t in traced.graph.tensors) == 250_000_000_000
