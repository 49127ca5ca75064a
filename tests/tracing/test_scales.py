"""Parameters that multiply or shift data: what the network computes of them, and what they are.

The effective value, which the network makes of the parameter, is what the GHN predicted; numbers
that are no norm's scale keep their values, and the reason has the name of what they are.
"""

import functools

import equinox
import flax.linen as nn
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from ghn_jax.graphs import PRIMITIVES
from ghn_jax.tracing import fill_variables, make_report, trace
from ghn_jax.tracing.gradients import COMPARED, FIXED
from ghn_jax.tracing.traced_network import COMPLEX, STATE

FEATURES = jax.ShapeDtypeStruct((2, 8), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def trace_function(function, images=FEATURES, dtype=jnp.float32, **params):
    shapes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in params.items()}
    return trace(function, images, params=shapes)


def fill(traced, **values):
    """Parameters for predictions of one value each."""
    arrays = [
        np.full(t.shape, values.get(t.path[-1], 0.1), np.float32) for t in traced.graph.tensors
    ]
    return fill_variables(traced, arrays)


def kept(traced):
    return make_report(traced).kept


def primitives(traced):
    return sorted(PRIMITIVES[p] for p in traced.graph.primitive)


def rms(x):
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


FUNCTIONS = {  # of a norm's scale
    "one plus": lambda p: 1 + p,
    "two minus": lambda p: 2 - p,
    "exp": jnp.exp,
    "power of two": lambda p: 2.0**p,
    "softplus": jax.nn.softplus,
    "softplus by hand": lambda p: jnp.log(1 + jnp.exp(p)),
    "square": jnp.square,
    "product with itself": lambda p: p * p,
    "root": jnp.sqrt,
    "twice": lambda p: p + p,
    "scaled": lambda p: p * jnp.ones((1, 8)) * jnp.sqrt(8.0),
    "bounded below": lambda p: jnp.maximum(p, 1e-3),
    "relu": jax.nn.relu,
    "clipped": lambda p: jnp.clip(p, -4, 4),
    "twice sigmoid": lambda p: 2 * jax.nn.sigmoid(p),
    "one plus tanh": lambda p: 1 + jnp.tanh(p),
    "closed over": lambda p: p + np.ones((1, 8), np.float32),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_scale_of_a_norm_is_what_was_predicted(name):
    function = FUNCTIONS[name]
    traced = trace_function(
        lambda p, x: (rms(x) * function(p["scale"])) @ p["w"], scale=(1, 8), w=(8, 3)
    )
    assert primitives(traced) == ["conv", "input", "ln"]
    parameter = fill(traced, scale=0.8)["scale"]
    assert parameter.dtype == np.float32 and parameter.shape == (1, 8)
    np.testing.assert_allclose(function(jnp.asarray(parameter)), 0.8, rtol=1e-5)


@pytest.mark.parametrize("divides", [False, True])
def test_a_scale_may_divide(divides):
    def apply(params, x):
        y = rms(x)
        return (y / params["scale"] if divides else y * params["scale"]) @ params["w"]

    traced = trace_function(apply, scale=(1, 8), w=(8, 3))
    expected = 1 / 0.8 if divides else 0.8
    np.testing.assert_allclose(fill(traced, scale=0.8)["scale"], expected, rtol=1e-6)


KEPT_SCALES = {
    "sigmoid": (jax.nn.sigmoid, "passes through logistic before use, which cannot give what"),
    "tanh": (jnp.tanh, "passes through tanh before use, which cannot give what"),
    "one plus exp": (lambda p: 1 + jnp.exp(p), "passes through exp, add before use, which cannot"),
    "sine": (jnp.sin, "passes through sin before use, which has no inverse"),
    "swish": (lambda p: p * jax.nn.sigmoid(p), "passes through logistic, several functions"),
    "shifted by a table": (
        lambda p: p + jnp.arange(8.0)[None],
        "passes through a sum with a table of constants before use, which has no inverse",
    ),
    "sum": (lambda p: jnp.cumsum(p, axis=1), "is computed from parameters before it meets"),
}


@pytest.mark.parametrize("name", KEPT_SCALES)
def test_a_function_without_such_an_inverse_keeps_its_parameter(name):
    function, reason = KEPT_SCALES[name]
    traced = trace_function(
        lambda p, x: (x * function(p["scale"])) @ p["w"], scale=(1, 8), w=(8, 3)
    )
    found = kept(traced)
    assert list(found) == ["scale"]
    assert found["scale"].startswith(reason) or "several functions of itself" in found["scale"]
    assert primitives(traced) == ["conv", "input"]


def test_kernels_and_biases_through_functions():
    def apply(params, x):
        w = params["w"] * (1 / np.sqrt(8)) * jnp.ones(())
        return x @ jnp.tanh(w) - 0.5 * params["bias"]

    filled = fill(trace_function(apply, w=(8, 3), bias=(1, 3)), w=0.3, bias=0.4)
    np.testing.assert_allclose(np.tanh(filled["w"] / np.sqrt(8)), 0.3, rtol=1e-5)
    np.testing.assert_allclose(-0.5 * filled["bias"], 0.4, rtol=1e-6)


def test_a_position_in_parts_through_a_function():
    def apply(params, x):
        return jnp.concatenate([x, x], axis=2) + 0.02 * params["position"].reshape(1, 4, 16)

    tokens = jax.ShapeDtypeStruct((2, 4, 8), jnp.float32)
    filled = fill(trace_function(apply, tokens, position=(64,)), position=0.3)
    np.testing.assert_allclose(0.02 * filled["position"], 0.3, rtol=1e-6)


def test_masks_and_straight_through_estimators_leave_the_kernel():
    mask = np.tril(np.ones((8, 8), np.float32))

    def apply(params, x):
        w = params["a"] * mask
        x = jnp.tanh(x @ w)
        b = params["b"]
        return x @ (b + lax.stop_gradient(jnp.round(b * 8) / 8 - b))

    traced = trace_function(apply, a=(8, 8), b=(8, 3))
    assert not kept(traced)
    filled = fill(traced, a=0.3, b=0.25)
    np.testing.assert_allclose(filled["a"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(filled["b"], 0.25, rtol=1e-6)


NORMS = {
    "flax batch": nn.BatchNorm(use_running_average=False),
    "flax running": nn.BatchNorm(use_running_average=True),
    "flax layer": nn.LayerNorm(),
    "flax slow layer": nn.LayerNorm(use_fast_variance=False),
    "flax rms": nn.RMSNorm(),
    "flax group": nn.GroupNorm(2),
    "flax instance": nn.InstanceNorm(),
    "nnx batch": nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
    "nnx layer": nnx.LayerNorm(4, rngs=nnx.Rngs(0)),
    "nnx rms": nnx.RMSNorm(4, rngs=nnx.Rngs(0)),
    "haiku batch": haiku.transform_with_state(lambda x: haiku.BatchNorm(True, True, 0.9)(x, True)),
    "haiku layer": haiku.transform(lambda x: haiku.LayerNorm(-1, True, True)(x)),
    "haiku rms": haiku.transform(lambda x: haiku.RMSNorm(-1)(x)),
    "haiku group": haiku.transform(lambda x: haiku.GroupNorm(2)(x)),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_scale_of_a_librarys_norm_is_the_parameter_itself(name):
    with jax.numpy_dtype_promotion("standard"):  # Haiku's moving averages
        traced = trace(NORMS[name], IMAGES)
    assert traced.graph.tensors and not [why for why in kept(traced).values() if why != STATE]
    assert all(not view.functions for view in traced.views)


LENGTHS = {  # norms by a length instead of a standard deviation, and what scale they need
    "length": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), np.sqrt(8)),
    "reciprocal": (lambda x: x * lax.rsqrt(jnp.sum(x * x, -1, keepdims=True)), np.sqrt(8)),
    "length times a root": (
        lambda x: x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)) * np.float32(np.sqrt(8)),
        1.0,
    ),
    "power": (lambda x: x * jnp.sum(x**2, -1, keepdims=True) ** -0.5, np.sqrt(8)),
    "rms": (rms, 1.0),
}


def by_scaled_reciprocal(x, scale):
    return x * (scale * lax.rsqrt(jnp.sum(x * x, -1, keepdims=True)))


@pytest.mark.parametrize("name", [*LENGTHS, "scaled reciprocal"])
def test_a_norm_by_length_needs_a_larger_scale(name):
    norm, factor = LENGTHS.get(name, (None, np.sqrt(8)))

    def apply(params, x):
        scale = params["scale"]
        y = norm(x) * scale if norm else by_scaled_reciprocal(x, scale)
        return y @ params["w"]

    traced = trace_function(apply, scale=(1, 8), w=(8, 3))
    assert primitives(traced) == ["conv", "input", "ln"]
    parameter = fill(traced, scale=0.8)["scale"]
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    found = apply({"scale": parameter, "w": np.eye(8, dtype=np.float32)}, x)
    np.testing.assert_allclose(parameter, 0.8 * factor, rtol=1e-4)
    np.testing.assert_allclose(np.sqrt(np.mean(found**2, axis=-1)), 0.8, rtol=1e-4)


class ReZero(nn.Module):
    shape: tuple[int, ...] = ()
    initial: float = 0.0

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(8, (3, 3))(x)
        alpha = self.param("alpha", nn.initializers.constant(self.initial), self.shape)
        alpha = alpha.reshape((1,) * (4 - len(self.shape)) + self.shape)
        h = h + alpha * nn.relu(nn.Conv(8, (3, 3))(h))
        return nn.Dense(3)(jnp.mean(h, axis=(1, 2)))


def test_gates_of_residual_branches_are_kept():
    nodes = ["bias", "bias", "bias", "conv", "conv", "conv", "glob_avg", "input", "sum"]
    traced = trace(ReZero(), IMAGES)
    assert kept(traced) == {"alpha": "gates a residual branch"}
    assert primitives(traced) == nodes
    traced = trace(ReZero((8,)), IMAGES)
    assert kept(traced) == {"alpha": "gates what it scales, and starts at zero"}
    assert primitives(traced) == nodes
    # One per channel that starts open is a layer scale.
    traced = trace(ReZero((8,), 1e-4), IMAGES)
    assert not kept(traced) and primitives(traced) == sorted([*nodes, "ln"])


def test_a_gate_of_zeros_is_known_in_every_library():
    def haiku_net(x):
        gate = haiku.get_parameter("gate", (8,), init=jnp.zeros)
        return x + gate[None] * haiku.Linear(8)(x)

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.gate = nnx.Linear(8, 8, rngs=rngs), nnx.Param(jnp.zeros(8))

        def __call__(self, x):
            return x + self.gate[...][None] * self.linear(x)

    for network in (haiku.transform(haiku_net), Nnx(nnx.Rngs(0))):
        reasons = kept(trace(network, FEATURES))
        assert list(reasons.values()) == ["gates what it scales, and starts at zero"]


SLOPES = {
    "where": lambda x, slope: jnp.where(x >= 0, x, slope * x),
    "maximum": lambda x, slope: jnp.maximum(x, slope * x),
    "sum": lambda x, slope: jnp.maximum(x, 0) + slope * jnp.minimum(x, 0),
    "swish": lambda x, slope: x * jax.nn.sigmoid(slope * x),
}


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("shape", [(), (1, 8)])
def test_slopes_of_activations_are_kept_and_no_node(name, shape):
    def apply(params, x):
        return SLOPES[name](x @ params["a"], params["slope"]) @ params["b"]

    traced = trace_function(apply, a=(8, 8), b=(8, 3), slope=shape)
    reason = kept(traced)["slope"]
    if name == "swish" and shape == ():  # by then the slope is only a number
        assert reason == "scales all channels alike, as no norm does"
    else:
        assert reason == "is the slope of an activation"
    assert primitives(traced) == ["conv", "conv", "input"]


def test_prelu_of_every_library():
    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.prelu = nnx.Linear(8, 8, rngs=rngs), nnx.PReLU()

        def __call__(self, x):
            return self.prelu(self.linear(x))

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.PReLU()(nn.Dense(8)(x))

    class Equinox(equinox.Module):
        linear: equinox.nn.Linear
        prelu: equinox.nn.PReLU

        def __call__(self, x):
            return self.prelu(self.linear(x))

    module = Equinox(equinox.nn.Linear(8, 8, key=jax.random.key(0)), equinox.nn.PReLU())
    for network in (Nnx(nnx.Rngs(0)), Linen(), module):
        traced = trace(network, FEATURES)
        assert list(kept(traced).values()) == ["is the slope of an activation"]
        assert primitives(traced) == ["bias", "conv", "input"]


@pytest.mark.parametrize("shape", [(), (1, 10)])
def test_scales_of_logits_are_kept(shape):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            t = self.param("t", nn.initializers.constant(-2.0), shape)
            return nn.Dense(10)(x) * jnp.exp(t)

    traced = trace(Net(), FEATURES, num_classes=10)
    assert kept(traced) == {"t": "scales the outputs, such as logits"}
    assert primitives(traced) == ["bias", "conv", "input"]
    roles = [t.role for t in traced.graph.tensors]
    assert roles == ["classifier_bias", "classifier_kernel"]


def test_a_shift_may_follow_the_scale_of_logits():
    def apply(params, x):
        return (x @ params["w"]) * params["scale"] + params["bias"]

    traced = trace_function(apply, w=(8, 10), scale=(1, 10), bias=(1, 10))
    assert kept(traced) == {"scale": "scales the outputs, such as logits"}
    assert make_report(traced).predicted == ("bias", "w")


def test_temperatures_are_kept():
    def softmax(params, x):
        return jax.nn.softmax(x @ params["a"] / params["t"]) @ params["b"]

    found = kept(trace_function(softmax, a=(8, 8), b=(8, 3), t=()))
    assert found == {"t": "is a temperature or the scale of an exponent"}

    def cosine(params, x):  # behind a norm, but one number for all features
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return (params["g"] * x) @ params["w"]

    found = kept(trace_function(cosine, w=(8, 3), g=()))
    assert found == {"g": "scales all channels alike, as no norm does"}


def test_a_norm_of_one_channel_has_a_scale_of_one_element():
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    traced = trace(nn.BatchNorm(use_running_average=False), image)
    assert make_report(traced).predicted == ("bias", "scale")


WAVES = {
    "frequencies": (lambda p, t: jnp.sin(t * p["freq"]), (1, 8)),
    "frequencies and phases": (lambda p, t: jnp.sin(t * p["freq"] + p["phase"]), (1, 8)),
    "Fourier features": (
        lambda p, t: (lambda y: jnp.sin(y) + jnp.cos(y))(2 * np.pi * (t @ p["freq"])),
        (1, 8),
    ),
}


@pytest.mark.parametrize("name", WAVES)
def test_frequencies_are_kept(name):
    wave, shape = WAVES[name]
    time = jax.ShapeDtypeStruct((2, 1), jnp.float32)
    traced = trace_function(
        lambda p, t: wave(p, t) @ p["w"], time, freq=shape, phase=(1, 8), w=(8, 3)
    )
    found = kept(traced)
    assert found["freq"] == "only enters a sine"
    assert name != "frequencies and phases" or found["phase"] == "only enters a sine"
    assert make_report(traced).predicted == ("w",)


def test_what_also_enters_something_else_than_a_sine_is_predicted():
    def apply(params, x):
        y = x * params["scale"]
        return (jnp.sin(y) + jnp.tanh(y)) @ params["w"]

    assert not kept(trace_function(apply, scale=(1, 8), w=(8, 3)))

    def siren(params, x):  # a sine as activation
        return jnp.sin(30 * (x @ params["a"] + params["bias"])) @ params["w"]

    assert not kept(trace_function(siren, a=(8, 8), bias=(1, 8), w=(8, 3)))


DISTANCES = {
    "square": lambda x, c: jnp.sum((x[:, None] - c[None]) ** 2, -1),
    "norm": lambda x, c: jnp.linalg.norm(x[:, None] - c[None], axis=-1),
    "absolute": lambda x, c: jnp.sum(jnp.abs(c[None] - x[:, None]), -1),
    "einsum": lambda x, c: (lambda d: jnp.einsum("bkc,bkc->bk", d, d))(x[:, None] - c[None]),
    "standardised": lambda x, c: jnp.sum(((x[:, None] - c[None]) / (1 + c[None])) ** 2, -1),
    "expanded": lambda x, c: squares(x) - 2 * x @ c.T + squares(c).T,
    "expanded otherwise": lambda x, c: jnp.einsum("kd,kd->k", c, c)[None] - x @ (2 * c.T),
    "squares first": lambda x, c: (squares(x) + squares(c).T) - 2 * jnp.einsum("bd,kd->bk", x, c),
}


def squares(x):
    return jnp.sum(x * x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", DISTANCES)
def test_prototypes_are_kept(name):
    def apply(params, x):
        distance = DISTANCES[name](x @ params["a"], params["c"])
        return jnp.exp(-params["gamma"] * distance) @ params["w"]

    traced = trace_function(apply, a=(8, 8), c=(5, 8), gamma=(1, 5), w=(5, 3))
    found = kept(traced)
    assert found.pop("c") == "only enters a distance"
    assert set(found) <= {"gamma"}
    assert set(make_report(traced).predicted) >= {"a", "w"}
    if name not in ("einsum", "squares first"):
        assert found == {"gamma": "only scales a distance"}


def test_prototypes_written_out_leave_the_graph_of_a_difference():
    def apply(params, x, name):
        return jnp.exp(-DISTANCES[name](x @ params["a"], params["c"])) @ params["w"]

    graphs = [
        primitives(
            trace_function(functools.partial(apply, name=name), a=(8, 8), c=(5, 8), w=(5, 3))
        )
        for name in ("square", "expanded otherwise")
    ]
    assert [graph.count("conv") for graph in graphs] == [2, 2]  # a and w


def test_a_codebook_that_is_looked_up_is_predicted():
    def apply(params, x, name):
        codes = jnp.argmin(DISTANCES[name](x @ params["a"], params["c"]), axis=-1)
        return params["c"][codes] @ params["w"]

    for name in ("square", "expanded", "squares first"):
        traced = trace_function(functools.partial(apply, name=name), a=(8, 8), c=(5, 8), w=(8, 3))
        roles = {tensor.path[0]: tensor.role for tensor in traced.graph.tensors}
        assert roles == {"c": "embedding", "w": "kernel"}


def test_squares_of_a_parameter_that_are_no_distance():
    def demodulated(params, x):  # divides by the length of columns
        return (x @ params["w"]) * jax.lax.rsqrt(jnp.sum(params["w"] ** 2, 0))[None]

    def penalised(params, x):  # one number for all
        return x @ params["w"] + jnp.sum(params["w"] ** 2)

    def lengths(params, x):
        return x @ params["w"] + jnp.linalg.norm(params["w"], axis=0)[None]

    for function in (demodulated, penalised, lengths):
        assert not kept(trace_function(function, w=(8, 3)))


def test_bounds_are_kept():
    def apply(params, x):
        return lax.clamp(jnp.zeros(x.shape), x, params["top"] * jnp.ones(x.shape)) @ params["w"]

    assert kept(trace_function(apply, top=(), w=(8, 3))) == {"top": "bounds the data"}


def test_the_epsilon_of_a_norm_is_kept():
    def apply(params, x):
        moment = jnp.mean(x**2, axis=-1, keepdims=True) + params["epsilon"]
        return (x * lax.rsqrt(moment) * params["scale"]) @ params["w"]

    traced = trace_function(apply, epsilon=(), scale=(1, 8), w=(8, 3))
    assert kept(traced) == {"epsilon": "is added to a mean of squares, as the epsilon of a norm"}
    assert primitives(traced) == ["conv", "input", "ln"]


def test_a_frequency_that_does_more_is_not_only_one():
    def snake(params, x):
        y = x @ params["a"]
        return (y + jnp.sin(params["rate"] * y) ** 2 / params["rate"]) @ params["b"]

    traced = trace_function(snake, a=(8, 8), rate=(1, 8), b=(8, 3))
    assert kept(traced) == {"rate": "is the slope of an activation"}


def test_a_bias_before_a_norm_is_no_prototype():
    def apply(params, x):
        return nn.LayerNorm(use_bias=False).apply({"params": params["norm"]}, x - params["b"])

    shape = jax.ShapeDtypeStruct
    params = {"b": shape((1, 8), jnp.float32), "norm": {"scale": shape((8,), jnp.float32)}}
    traced = trace(apply, FEATURES, params=params)
    assert not kept(traced)
    assert primitives(traced) == ["bias", "input", "ln"]


class LinenFixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        mean = self.param("mean", nn.initializers.constant(7.0), (8,))
        order = self.param("order", lambda key: jnp.arange(8)[::-1])
        mask = self.param("mask", lambda key: jnp.ones(8, bool))
        floor = self.param("floor", nn.initializers.constant(-3.0), (8,))
        x = jnp.where(mask[None], (x - lax.stop_gradient(mean)[None])[:, order], 0)
        return nn.Dense(3)(jnp.where(x > floor[None], x, 0))


class Buffer(nnx.Variable):
    pass


class NnxFixed(nnx.Module):
    def __init__(self):
        self.Dense_0 = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        self.mean, self.floor = nnx.Param(jnp.full(8, 7.0)), nnx.Param(jnp.full(8, -3.0))
        self.order, self.mask = nnx.Param(jnp.arange(8)[::-1]), nnx.Param(jnp.ones(8, bool))
        self.table = Buffer(jnp.full(8, 2.0))

    def __call__(self, x):
        x = (x - lax.stop_gradient(self.mean[...])[None])[:, self.order[...]]
        x = jnp.where(self.mask[...][None], x * self.table[...][None], 0)
        return self.Dense_0(jnp.where(x > self.floor[...][None], x, 0))


class EquinoxFixed(equinox.Module):
    Dense_0: equinox.nn.Linear
    mean: jax.Array
    floor: jax.Array
    order: jax.Array
    mask: jax.Array

    def __call__(self, x):
        x = jnp.where(self.mask, (x - lax.stop_gradient(self.mean))[self.order], 0)
        return self.Dense_0(jnp.where(x > self.floor, x, 0))


def haiku_fixed(x):
    mean = haiku.get_parameter("mean", (8,), init=haiku.initializers.Constant(7.0))
    floor = haiku.get_parameter("floor", (8,), init=haiku.initializers.Constant(-3.0))
    order = haiku.get_parameter("order", (8,), jnp.int32, init=lambda s, d: jnp.arange(8)[::-1])
    x = (x - lax.stop_gradient(mean)[None])[:, order]
    return haiku.Linear(3, name="Dense_0")(jnp.where(x > floor[None], x, 0))


def equinox_fixed():
    linear = equinox.nn.Linear(8, 3, key=jax.random.key(0))
    order, mask = jnp.arange(8)[::-1], jnp.ones(8, bool)
    return EquinoxFixed(linear, jnp.full(8, 7.0), jnp.full(8, -3.0), order, mask)


NETWORKS_WITH_FIXED = {
    "linen": LinenFixed,
    "nnx": NnxFixed,
    "equinox": equinox_fixed,
    "haiku": lambda: haiku.transform(haiku_fixed),
}


@pytest.mark.parametrize("name", NETWORKS_WITH_FIXED)
def test_what_a_network_keeps_fixed_keeps_its_value(name):
    traced = trace(NETWORKS_WITH_FIXED[name](), FEATURES)
    report = make_report(traced)
    reasons = {path.split("/")[-1]: why for path, why in report.kept.items()}
    expected = {"mean": FIXED, "floor": COMPARED, "order": STATE, "mask": STATE, "table": STATE}
    assert reasons == {path: expected[path] for path in reasons}
    assert set(reasons) >= {"mean", "floor"}
    assert reasons.get("order", STATE) == STATE
    # A kernel, a bias, and the floor, which is a parameter by its dtype.
    assert (report.num_predicted, report.num_parameters) == (8 * 3 + 3, 8 * 3 + 3 + 8)
    assert [line.split(":")[0].split("/")[-1] for line in report.unpredicted] == ["floor"]
    assert "kept 1 tensor behind stop_gradient" in str(report).splitlines()
    filled = fill(traced)
    names = ["/".join(path).split("/")[-1] for path in traced.description.paths]
    leaves = dict(zip(names, jax.tree.leaves(filled), strict=True))
    np.testing.assert_array_equal(leaves["mean"], np.full(8, 7.0))
    np.testing.assert_array_equal(leaves["floor"], np.full(8, -3.0))
    if name != "equinox":
        np.testing.assert_array_equal(leaves["order"], np.arange(8)[::-1])


def test_frozen_layers_are_kept():
    def apply(params, x):
        return lax.stop_gradient(jax.nn.relu(x @ params["frozen"])) @ params["head"]

    traced = trace_function(apply, frozen=(8, 8), head=(8, 3))
    assert kept(traced) == {"frozen": FIXED}
    assert primitives(traced) == ["conv", "conv", "input"]


def test_complex_parameters_are_kept():
    def apply(params, x):
        y = jnp.abs(x.astype(jnp.complex64) @ params["w"])
        return y @ params["head"]

    shape = jax.ShapeDtypeStruct
    w, head = shape((8, 8), jnp.complex64), shape((8, 3), jnp.float32)
    traced = trace(apply, FEATURES, params={"w": w, "head": head})
    assert kept(traced) == {"w": COMPLEX}
    assert primitives(traced) == ["conv", "conv", "input"]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", lambda key: jnp.full((8, 8), 1 + 2j, jnp.complex64))
            return nn.Dense(3)(jnp.real(x.astype(jnp.complex64) * w[:1]))

    traced = trace(Net(), FEATURES)
    assert kept(traced) == {"w": COMPLEX}
    np.testing.assert_array_equal(fill(traced)["params"]["w"], np.full((8, 8), 1 + 2j))


def test_parameters_in_half_precision_are_parameters():
    traced = trace_function(
        lambda p, x: x.astype(jnp.bfloat16) @ jnp.exp2(p["w"]) @ p["v"],
        dtype=jnp.bfloat16,
        w=(8, 8),
        v=(8, 3),
    )
    assert kept(traced) == {
        "w": "passes through exp2 before use, which cannot give what a GHN predicts"
    }
    assert make_report(traced).predicted == ("v",)
