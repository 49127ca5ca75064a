"""Running statistics from data, in every library: means and variances of what the norm is given."""

import equinox
import flax
import flax.linen as nn
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ghn_jax.tracing import calibrate_batch_stats

RNG = np.random.default_rng(0)
BATCHES = [(2 + 3 * RNG.standard_normal((6, 5))).astype(np.float32) for _ in range(2)]
MEAN = np.mean([x.mean(0) for x in BATCHES], axis=0)
VAR = np.mean([x.var(0) for x in BATCHES], axis=0)


def assert_statistics(mean, var):
    np.testing.assert_allclose(mean, MEAN, rtol=1e-4)
    np.testing.assert_allclose(var, VAR, rtol=1e-4)


class Norm(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(not train, axis_name=self.axis_name, momentum=0.7, name="norm")
        return nn.Dense(3)(norm(x))


@pytest.mark.parametrize("axis_name", [None, "batch", "devices"])
def test_linen_with_a_named_axis(axis_name):
    network = Norm(axis_name)
    variables = network.init(jax.random.key(0), BATCHES[0])
    found = calibrate_batch_stats(network, variables, BATCHES, train=True)
    assert_statistics(**found["batch_stats"]["norm"])
    assert found["params"] is variables["params"]


def test_a_frozen_dict_stays_one():
    variables = flax.core.freeze(Norm().init(jax.random.key(0), BATCHES[0]))
    found = calibrate_batch_stats(Norm(), variables, BATCHES, train=True)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    assert_statistics(**found["batch_stats"]["norm"])


class Spectral(nn.Module):
    has_norm: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.SpectralNorm(nn.Dense(4, use_bias=False, name="dense"))(x, update_stats=train)
        return nn.BatchNorm(not train, name="norm")(x) if self.has_norm else x


def test_spectral_norms_move_on_and_what_follows_is_measured():
    x, network = BATCHES[0], Spectral()
    variables = network.init(jax.random.key(0), x)
    found = calibrate_batch_stats(network, variables, [x] * 60, train=True)
    kernel = np.asarray(variables["params"]["dense"]["kernel"])
    largest = np.linalg.svd(kernel, compute_uv=False)[0]
    stats = found["batch_stats"]
    np.testing.assert_allclose(stats["SpectralNorm_0"]["dense/kernel/sigma"], largest, rtol=1e-3)
    # Averaged over 60 calls, of which the first ones had another sigma.
    np.testing.assert_allclose(stats["norm"]["var"], (x @ kernel / largest).var(0), rtol=0.1)
    alone = Spectral(has_norm=False)
    variables = alone.init(jax.random.key(0), x)
    found = calibrate_batch_stats(alone, variables, [x] * 60, train=True)
    sigma = found["batch_stats"]["SpectralNorm_0"]["dense/kernel/sigma"]
    np.testing.assert_allclose(sigma, largest, rtol=1e-3)
    with pytest.raises(ValueError, match=r"batch_stats\['SpectralNorm_0'\].* is not updated"):
        calibrate_batch_stats(alone, variables, x, train=False)


class NnxNorm(nnx.Module):
    def __init__(self, rngs, axis_name=None):
        self.norm = nnx.BatchNorm(5, momentum=0.7, axis_name=axis_name, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.dense = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, rngs=None):
        return self.dense(self.dropout(self.norm(x), rngs=rngs))


@pytest.mark.parametrize("axis_name", [None, "batch"])
def test_nnx(axis_name):
    network = NnxNorm(nnx.Rngs(0), axis_name)
    network.eval()
    variables = nnx.state(network)
    found = calibrate_batch_stats(network, variables, BATCHES, rngs=nnx.Rngs(1))
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    assert_statistics(found["norm"]["mean"][...], found["norm"]["var"][...])
    np.testing.assert_array_equal(network.norm.mean[...], np.zeros(5))  # of the caller
    nnx.update(network, found)
    expected = network.dense(jnp.asarray((BATCHES[0] - MEAN) / np.sqrt(VAR + 1e-5)))
    np.testing.assert_allclose(network(BATCHES[0]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axis_name", [None, "i"])
def test_haiku(axis_name):
    def forward(x, is_training, axis_name=axis_name):
        x = haiku.BatchNorm(False, False, 0.7, cross_replica_axis=axis_name)(x, is_training)
        return haiku.ExponentialMovingAverage(0.9, zero_debias=False, name="plain")(x + 1)

    with jax.numpy_dtype_promotion("standard"):
        network = haiku.transform_with_state(forward)
        params, state = network.init(jax.random.key(0), BATCHES[0], True, None)
        new_params, found = calibrate_batch_stats(
            network, (params, state), BATCHES, is_training=True
        )
        assert new_params is params
        assert jax.tree.structure(found) == jax.tree.structure(state)
        mean, var = (found[f"batch_norm/~/{name}"] for name in ("mean_ema", "var_ema"))
        assert_statistics(mean["average"].ravel(), var["average"].ravel())
        normed = [(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + 1 for x in BATCHES]
        np.testing.assert_allclose(found["plain"]["average"], np.mean(normed, 0), rtol=1e-3)
        if axis_name is not None:
            return
        # Training goes on from there: the second of two averages with weights 0.7 * 0.3 and 0.3.
        _, after = network.apply(params, found, None, BATCHES[0], is_training=True)
        expected = (0.21 * MEAN + 0.3 * BATCHES[0].mean(0)) / 0.51
        found_mean = after["batch_norm/~/mean_ema"]["average"].ravel()
        np.testing.assert_allclose(found_mean, expected, rtol=1e-4)
        with pytest.raises(ValueError, match=r"state\['batch_norm/~/mean_ema'\] is not updated"):
            calibrate_batch_stats(network, (params, state), BATCHES, is_training=False)


class EquinoxNorm(equinox.Module):
    norm: equinox.nn.BatchNorm
    dense: equinox.nn.Linear

    def __init__(self, mode, axis_name):
        self.norm = equinox.nn.BatchNorm(5, axis_name, momentum=0.7, mode=mode)
        self.dense = equinox.nn.Linear(5, 3, key=jax.random.key(0))

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.dense(x), state


@pytest.mark.parametrize("mode", ["ema", "batch"])
@pytest.mark.parametrize("axis_name", ["batch", ("images", "devices")])
def test_equinox(mode, axis_name):
    network, state = equinox.nn.make_with_state(EquinoxNorm)(mode, axis_name)
    arrays = equinox.filter(network, equinox.is_inexact_array)
    new_arrays, found = calibrate_batch_stats(network, (arrays, state), BATCHES)
    assert new_arrays is arrays
    assert jax.tree.structure(found) == jax.tree.structure(state)  # and `state` is usable
    evaluated = equinox.nn.inference_mode(network)
    outputs, _ = jax.vmap(evaluated, (0, None), (0, None))(BATCHES[0], found)
    expected = jax.vmap(network.dense)((BATCHES[0] - MEAN) / np.sqrt(VAR + 1e-5))
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="state of a BatchNorm is not updated by the call"):
        calibrate_batch_stats(evaluated, (arrays, state), BATCHES)


def test_what_is_not_a_network_or_not_its_variables():
    with pytest.raises(ValueError, match="expected a Flax, NNX or Equinox module or a Haiku"):
        calibrate_batch_stats(np.sin, {}, BATCHES)
    with pytest.raises(ValueError, match="expected a mapping with batch_stats"):
        calibrate_batch_stats(Norm(), [1], BATCHES)
    module = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="expected the state of the module"):
        calibrate_batch_stats(module, {}, BATCHES)
    with pytest.raises(ValueError, match="has no nnx.BatchStat"):
        calibrate_batch_stats(module, nnx.state(module), BATCHES)
    with pytest.raises(ValueError, match=r"expected \(params, state\)"):
        calibrate_batch_stats(haiku.transform_with_state(np.sin), {}, BATCHES)
    with pytest.raises(ValueError, match=r"has the state \['sum'\], expected moving averages"):
        variables = ({}, {"sum": {"value": np.ones(3)}})
        calibrate_batch_stats(haiku.transform_with_state(np.sin), variables, BATCHES)
    linear = equinox.nn.Linear(5, 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="has no equinox.nn.BatchNorm"):
        calibrate_batch_stats(linear, (linear, None), BATCHES)


ROWS = RNG.uniform(1, 2, 6).astype(np.float32)  # one for each image
SCALED = ROWS[:, None] * BATCHES[0] + 1


def scale(x, rows, key):
    return x * rows[..., None] + (0 if key is None else 1)


class ScaledLinen(nn.Module):
    @nn.compact
    def __call__(self, x, rows, train=False, key=None):
        return nn.BatchNorm(not train, name="norm")(scale(x, rows, key))


class ScaledNnx(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(5, rngs=nnx.Rngs(0))

    def __call__(self, x, rows, rngs, key=None):
        return self.norm(scale(x, rows, key) + 0 * jax.random.normal(rngs(), x.shape))


class ScaledEquinox(equinox.Module):
    norm: equinox.nn.BatchNorm

    def __init__(self):
        self.norm = equinox.nn.BatchNorm(5, "batch", mode="ema")

    def __call__(self, x, rows, state, key=None):
        return self.norm(scale(x, rows, key), state)


def scaled_haiku(x, rows, key=None):
    return haiku.BatchNorm(False, False, 0.7, name="norm")(scale(x, rows, key), True)


def moments(kind):
    """Moments of a network with further positional arguments and one that is called `key`."""
    if kind == "linen":
        network, args, kwargs = ScaledLinen(), (ROWS, True), {"key": 1}
        variables = network.init(jax.random.key(0), BATCHES[0], ROWS)
    elif kind == "nnx":
        network, args, kwargs = ScaledNnx(), (ROWS, nnx.Rngs(1)), {"key": 1}
        variables = nnx.state(network)
    elif kind == "equinox":
        network, state = equinox.nn.make_with_state(ScaledEquinox)()
        args, kwargs = (ROWS,), {"key": 1}
        variables = equinox.filter(network, equinox.is_inexact_array), state
    else:
        network, args, kwargs = haiku.transform_with_state(scaled_haiku), (ROWS,), {"key": 1}
        variables = network.init(jax.random.key(0), BATCHES[0], ROWS)
    found = calibrate_batch_stats(
        network, variables, BATCHES[0], call_args=args, call_kwargs=kwargs, key=jax.random.key(3)
    )
    if kind == "linen":
        return [found["batch_stats"]["norm"][name] for name in ("mean", "var")]
    if kind == "nnx":
        return [found["norm"][name][...] for name in ("mean", "var")]
    if kind == "equinox":
        return found[1].get(network.norm.ema_state_index)
    return [found[1][f"norm/~/{name}_ema"]["average"].ravel() for name in ("mean", "var")]


@pytest.mark.parametrize("kind", ["linen", "nnx", "equinox", "haiku"])
def test_further_arguments_of_the_call(kind):
    with jax.numpy_dtype_promotion("standard"):
        mean, var = moments(kind)
    np.testing.assert_allclose(mean, SCALED.mean(0), rtol=1e-4)
    np.testing.assert_allclose(var, SCALED.var(0), rtol=1e-3)


def test_a_name_that_is_also_ours():
    network = ScaledLinen()
    variables = network.init(jax.random.key(0), BATCHES[0], ROWS)
    given = {"call_args": (ROWS, True), "key": jax.random.key(0)}
    expected = "^key is an argument of calibrate_batch_stats and one of the network's call, exp"
    with pytest.raises(ValueError, match=expected):
        calibrate_batch_stats(network, variables, BATCHES, **given)
    calibrate_batch_stats(network, variables, BATCHES, **given, call_kwargs={})
    with pytest.raises(ValueError, match="^train is given twice, by its name and in call_kwargs"):
        calibrate_batch_stats(network, variables, BATCHES, train=1, call_kwargs={"train": True})
    with pytest.raises(ValueError, match="^call_args is .* expected a tuple of positional"):
        calibrate_batch_stats(network, variables, BATCHES, call_args=ROWS)
