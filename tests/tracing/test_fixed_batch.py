"""Networks with the number of images written in them are refused by the line that says so."""

import re

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small_graphs import shapes, tensors

from ghn_jax.tracing import trace
from ghn_jax.tracing.fixed_batch import find_fixed_batch
from ghn_jax.tracing.jaxprs import walk_equations

IMAGES = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)


def flat(x):
    return x.reshape(4, -1)


def groups(x):
    return x.reshape(4, 64, -1).mean(1)


def tokens(x):
    return x.reshape(4, -1, 3).mean(1)


def features(x):
    return jnp.transpose(x.reshape(-1, 8, 24), (1, 2, 0)).reshape(8, -1)


def vector(x):
    return x.reshape(-1)


def first(x):
    return x.mean((1, 2))[:4]


def rows(x):
    x = x.mean((1, 2))
    return jnp.stack([x[index] for index in range(4)])


def table(x):
    return x.mean((1, 2)) + jnp.ones((4, 3))


# What the error says of the operation; N is the number of images.
FAULTS = {
    flat: "reshape of (N, 8, 8, 3) to (4, 48 * N) (test_fixed_batch.py, line",
    groups: "into shape (4, 64, -1)",
    tokens: "reshape of (N, 8, 8, 3) to (4, 16 * N, 3)",
    features: "to (8, 24 * N)",
    vector: "reshape of (N, 8, 8, 3) to (192 * N,)",
    first: "slice of (N, 3) to (4, 3)",
    rows: "an output has the shape (4, 10) for any number of images",
    table: "add got incompatible shapes",
}


@pytest.mark.parametrize("function", FAULTS)
def test_the_operation_is_named(function):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(function(x))

    expected = re.escape(FAULTS[function])
    start = f"^network runs on the batch of 4 that is given, but not on any .*: .*{expected}"
    with pytest.raises(ValueError, match=start) as caught:
        trace(Net(), IMAGES)
    found = str(caught.value)
    assert "; expected x.shape[0] where 4 is written for the batch, such as x.reshape(x.sh" in found
    if function is not rows:
        assert re.search(r"\(test_fixed_batch\.py, line \d+: return .*x\.", found)


class Nnx(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(192, 10, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dense(flat(x))


def test_parameters_that_exist_already():
    expected = re.escape(FAULTS[flat])
    with pytest.raises(ValueError, match=expected):
        trace(Nnx(), IMAGES)
    with pytest.raises(ValueError, match=expected):
        trace(lambda params, x: flat(x) @ params["w"], IMAGES, params=shapes(w=(192, 10)))


def test_an_equinox_network_is_given_one_image():
    class Net(equinox.Module):
        dense: equinox.nn.Linear = equinox.nn.Linear(192, 10, key=jax.random.key(0))

        def __call__(self, x):
            return self.dense(x.reshape(-1))

    assert sorted(tensors(trace(Net(), IMAGES))) == ["dense/bias", "dense/weight"]


class Fitting(nn.Module):
    """Whatever looks like a number of images, but is none."""

    width: int = 2018  # twice the prime that stands for the batch

    @nn.compact
    def __call__(self, x):
        heads = nn.Dense(4 * 6, name="heads")(x.mean((1, 2))).reshape(x.shape[0], 4, 6)
        heads = jnp.transpose(heads, (1, 0, 2)).reshape(4, -1)  # four heads
        heads = jnp.transpose(heads.reshape(4, -1, 6), (1, 0, 2)).reshape(x.shape[0], 24)
        return nn.Dense(10, name="out")(nn.relu(nn.Dense(self.width, name="wide")(heads)))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_networks_of_any_number_of_images_are_read(batch_size):
    images = jax.ShapeDtypeStruct((batch_size, 8, 8, 3), jnp.float32)
    found = {path: shape for path, (shape, _) in tensors(trace(Fitting(), images)).items()}
    assert found == {
        "heads/kernel": (3, 24), "heads/bias": (24,), "wide/kernel": (24, 2018),
        "wide/bias": (2018,), "out/kernel": (2018, 10), "out/bias": (10,),
    }  # fmt: skip


def test_as_many_members_or_layers_as_images():
    class Ensemble(nn.Module):
        """Four members in one batch; all layers are outputs."""

        @nn.compact
        def __call__(self, x):
            hidden = nn.Dense(10)(jnp.tile(x.mean((1, 2)), (4, 1)))
            hidden = hidden.reshape(4, x.shape[0], 10)
            layers = [nn.Dense(10)(hidden.mean(0)) for _ in range(4)]
            return hidden, jnp.stack(layers)

    names = [f"Dense_{index}/{name}" for index in range(5) for name in ("bias", "kernel")]
    assert sorted(tensors(trace(Ensemble(), IMAGES))) == names


def test_one_image():
    def moved(x):
        return x.reshape(1, *x.shape)

    def packed(x):
        return x.reshape(1, -1, 3)

    images = jnp.zeros((7, 5, 3))
    assert find_fixed_batch(jax.make_jaxpr(moved)(images), 7, 1) is None
    found = find_fixed_batch(jax.make_jaxpr(jax.jit(packed))(images), 7, 1)
    assert found.startswith("reshape of (N, 5, 3) to (1, 5 * N, 3) (test_fixed_batch.py, line")


def test_equations_of_functions_loops_and_branches_are_walked():
    def function(x):
        x = jax.jit(jnp.sin)(x)
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.cos(x), x)
        return jax.lax.cond(x.sum() > 0, jnp.tanh, jnp.exp, x)

    names = [eqn.primitive.name for eqn in walk_equations(jax.make_jaxpr(function)(jnp.ones(3)))]
    assert {"sin", "cos", "tanh", "exp"} <= set(names)
