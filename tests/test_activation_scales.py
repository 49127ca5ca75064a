"""Scales of activations beside He's: measured, warned of, and brought back."""

import functools
import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architecture_samples import ONE_OP
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

import ghn_jax
from ghn_jax.targets.initialization import draw_tensors
from ghn_jax.tracing.activations import root_mean_square
from ghn_jax.tracing.rescaling import WARNING_FACTOR, LayerScale

DEPTH, WIDTH = 9, 64
IMAGES = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32)


class Plain(nn.Module):
    """Convolutions without norms, as in a VGG."""

    @nn.compact
    def __call__(self, x):
        for _ in range(DEPTH):
            x = nn.relu(nn.Conv(WIDTH, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class PlainNNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        sizes = [3] + [WIDTH] * DEPTH
        self.convs = nnx.List(
            nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in zip(sizes, sizes[1:], strict=False)
        )
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(x.mean((1, 2)))


class PlainEquinox(eqx.Module):
    convs: list
    head: eqx.nn.Linear

    def __init__(self):
        key = jax.random.key(0)
        sizes = [3] + [WIDTH] * DEPTH
        self.convs = [
            eqx.nn.Conv2d(i, o, 3, padding=1, key=key)
            for i, o in zip(sizes, sizes[1:], strict=False)
        ]
        self.head = eqx.nn.Linear(WIDTH, 10, key=key)

    def __call__(self, x):  # (3, 8, 8)
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.head(x.mean((1, 2)))


def plain_haiku(x):
    for _ in range(DEPTH):
        x = jax.nn.relu(hk.Conv2D(WIDTH, 3)(x))
    return hk.Linear(10)(x.mean((1, 2)))


def plain_function(params, x):
    for kernel in params["kernels"]:
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
    return x.mean((1, 2)) @ params["head"]


def plain_params():
    sizes = [3] + [WIDTH] * DEPTH
    kernels = [np.ones((3, 3, i, o), np.float32) for i, o in zip(sizes, sizes[1:], strict=False)]
    return {"kernels": kernels, "head": np.ones((WIDTH, 10), np.float32)}


NETWORKS = {
    "linen": lambda: (Plain(), IMAGES, {}),
    "nnx": lambda: (PlainNNX(), IMAGES, {}),
    "haiku": lambda: (hk.transform(plain_haiku), IMAGES, {}),
    "equinox": lambda: (PlainEquinox(), IMAGES.transpose(0, 3, 1, 2), {}),
    "function": lambda: (plain_function, IMAGES, {"params": plain_params()}),
}


@functools.cache
def ghn():
    return ghn_jax.load("digits")


def predict(network, *arguments, **keywords):
    """A prediction without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ghn().predict(network, *arguments, **keywords)


def rms(x):
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))


def captured_scales(network, params):
    """Scales of every layer by Flax's own means: its output less its bias."""
    _, state = network.apply({"params": params}, IMAGES, capture_intermediates=True)
    names = [*(f"Conv_{index}" for index in range(DEPTH)), "Dense_0"]
    outputs = [state["intermediates"][name]["__call__"][0] for name in names]
    biases = [np.asarray(params[name]["bias"]) for name in names]
    return [rms(np.asarray(x) - bias) for x, bias in zip(outputs, biases, strict=True)]


def he_params(prediction):
    """He's parameters in the place of those that were predicted."""
    drawn = draw_tensors(prediction.graph.tensors, np.random.default_rng(0))
    params = dict(flatten_dict(prediction.variables["params"]))
    for tensor, array in zip(prediction.graph.tensors, drawn, strict=True):
        params[tensor.path] = array.reshape(params[tensor.path].shape)
    return unflatten_dict(params)


def test_scales_are_those_that_flax_captures():
    prediction = predict(Plain(), IMAGES, check=IMAGES)
    scales = prediction.report.scales
    paths = [*(f"Conv_{index}/kernel" for index in range(DEPTH)), "Dense_0/kernel"]
    assert [layer.path for layer in scales] == paths
    found = [layer.scale for layer in scales]
    np.testing.assert_allclose(
        found, captured_scales(Plain(), prediction.variables["params"]), rtol=1e-4
    )
    he_scales = [layer.he_scale for layer in scales]
    np.testing.assert_allclose(
        he_scales, captured_scales(Plain(), he_params(prediction)), rtol=1e-4
    )
    plain = ghn().predict(Plain(), IMAGES)
    assert plain.report.scales == ()
    for one, other in zip(
        jax.tree.leaves(plain.variables), jax.tree.leaves(prediction.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_scales_of_a_function_by_hand():
    prediction = predict(plain_function, IMAGES, params=plain_params(), check=IMAGES[:3])
    x, expected = IMAGES[:3], []
    for kernel in prediction.variables["kernels"]:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
        expected.append(rms(x))
        x = np.maximum(x, 0)
    expected.append(rms(x.mean((1, 2)) @ prediction.variables["head"]))
    found = [layer.scale for layer in prediction.report.scales]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_library(name):
    network, images, arguments = NETWORKS[name]()
    with pytest.warns(
        UserWarning, match=r"^the outputs of \d of 10 layers are more than 100 times"
    ):
        plain = ghn().predict(network, images, check=images, **arguments)
    assert max(layer.factor for layer in plain.report.scales) > WARNING_FACTOR
    # Warnings are errors here: there is none.
    rescaled = ghn().predict(network, images, check=images, rescale=True, **arguments)
    assert len(rescaled.report.scales) == DEPTH + 1
    assert max(layer.factor for layer in rescaled.report.scales) < 1.001
    by_noise = ghn().predict(network, images, check=images, rescale="noise", **arguments)
    assert 1.001 < max(layer.factor for layer in by_noise.report.scales) < 3


def test_a_layer_is_multiplied_as_a_whole():
    plain = predict(Plain(), IMAGES).variables["params"]
    rescaled = predict(Plain(), IMAGES, check=IMAGES, rescale=True).variables["params"]
    factors = []
    for name, layer in plain.items():
        factor = rms(rescaled[name]["kernel"]) / rms(layer["kernel"])
        for key in ("kernel", "bias"):
            np.testing.assert_allclose(rescaled[name][key], factor * layer[key], rtol=1e-5)
        factors.append(factor)
    assert min(factors) < 0.5
    np.testing.assert_allclose(
        captured_scales(Plain(), rescaled),
        captured_scales(Plain(), he_params(predict(Plain(), IMAGES))),
        rtol=1e-3,
    )


def test_without_images_noise_is_as_given_in_their_place():
    noise = np.random.default_rng(0).standard_normal(IMAGES.shape, dtype=np.float32)
    expected = predict(Plain(), IMAGES, check=noise, rescale="images")
    found = ghn().predict(Plain(), IMAGES.shape, rescale=True)
    assert found.report.scales == ()
    for one, other in zip(
        jax.tree.leaves(found.variables), jax.tree.leaves(expected.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_by_fan_in_every_kernel_has_the_size_of_hes():
    plain = ghn().predict(Plain(), IMAGES).variables["params"]
    rescaled = ghn().predict(Plain(), IMAGES, rescale="fan_in").variables["params"]
    for name, layer in rescaled.items():
        np.testing.assert_array_equal(layer["bias"], plain[name]["bias"])
        fan_in = np.prod(layer["kernel"].shape[:-1])  # kh kw in, or in
        np.testing.assert_allclose(rms(layer["kernel"]), np.sqrt(2 / fan_in), rtol=1e-5)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for _ in range(3):
            x = nn.Conv(8, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=1e-9)(x))
        return x.mean((1, 2)) @ self.param("head", nn.initializers.ones, (8, 10))


@pytest.mark.parametrize("rescale", ["fan_in", "noise", "images"])
def test_before_a_norm_the_scale_means_nothing(rescale):
    def logits(prediction):
        variables = {**prediction.variables}
        head = variables["params"]["head"]
        variables["params"] = {**variables["params"], "head": head / rms(head)}
        variables = ghn_jax.calibrate_batch_stats(Normed(), variables, IMAGES, train=True)
        return Normed().apply(variables, IMAGES, train=False)

    plain = ghn().predict(Normed(), IMAGES, train=True)
    rescaled = ghn().predict(Normed(), IMAGES, train=True, check=IMAGES, rescale=rescale)
    kernel, other = (p.variables["params"]["Conv_1"]["kernel"] for p in (plain, rescaled))
    assert abs(rms(kernel) / rms(other) - 1) > 0.01
    np.testing.assert_allclose(logits(rescaled), logits(plain), rtol=1e-3, atol=1e-4)


class Scanned(nn.Module):
    """Layers whose kernels lie in one array, which a scan runs over."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH)(x.mean((1, 2)))

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.relu(nn.Dense(WIDTH)(x)), None

        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        return nn.Dense(10)(stack()(x, None)[0])


def test_layers_of_a_scan_each_have_their_scale():
    prediction = predict(Scanned(), IMAGES, check=IMAGES, rescale=True)
    scales = {layer.path: layer for layer in prediction.report.scales}
    names = [f"ScanBlock_0/Dense_0/kernel[{step}]" for step in range(4)]
    assert list(scales) == ["Dense_0/kernel", *names, "Dense_1/kernel"]
    assert max(layer.factor for layer in scales.values()) < 1.001
    params = prediction.variables["params"]
    x = IMAGES.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    stack = params["ScanBlock_0"]["Dense_0"]
    for kernel, bias, name in zip(stack["kernel"], stack["bias"], names, strict=True):
        np.testing.assert_allclose(rms(x @ kernel), scales[name].scale, rtol=1e-4)
        x = np.maximum(x @ kernel + bias, 0)


def test_a_kernel_that_a_loop_uses_again():
    def apply(params, x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jax.nn.relu(x @ params["w"]), x)

    x = IMAGES.reshape(4, -1)[:, :8]
    params = {"w": np.ones((8, 8), np.float32)}
    prediction = predict(apply, x, params=params, check=x)
    (layer,) = prediction.report.scales
    squares = []
    for _ in range(3):
        x = x @ prediction.variables["w"]
        squares.append(rms(x) ** 2)
        x = np.maximum(x, 0)
    np.testing.assert_allclose(layer.scale, np.sqrt(np.mean(squares)), rtol=1e-5)


def test_what_cannot_be_rescaled_has_a_reason():
    def apply(params, x):
        w = params["w"]
        w = w - w.mean(0, keepdims=True)
        x = jax.nn.relu(x @ w)
        x = jax.nn.relu(x @ params["v"])
        return (x @ params["v"]) @ params["u"] * params["u"][:1, :1]

    x = IMAGES.reshape(4, -1)[:, :8]
    params = {name: np.ones((8, 8), np.float32) for name in "uvw"}
    prediction = predict(apply, x, params=params, check=x, rescale=True)
    obstacles = {layer.path: layer.obstacle for layer in prediction.report.scales}
    assert obstacles["v"] is None  # brought to scale where it is used first
    assert obstacles["w"] == "its kernel is computed from parameters, not a multiple of one"
    assert obstacles["u"] == "its kernel also acts elsewhere, which would change, too"
    assert str(prediction.report).endswith(f"left: {obstacles['u']}")
    plain = predict(apply, x, params=params)
    for name in "uw":
        np.testing.assert_array_equal(prediction.variables[name], plain.variables[name])


def test_kernels_side_by_side_get_one_factor():
    def apply(stops, params, x):
        b = jax.lax.stop_gradient(params["b"]) if stops else params["b"]
        w = jnp.concatenate([params["a"], b], axis=1)
        return jax.lax.cond(x.sum() > 0, lambda y: y @ w, lambda y: y @ params["c"], x)

    x = IMAGES.reshape(4, -1)[:, :8]
    params = {"a": np.ones((8, 4)), "b": np.ones((8, 4)), "c": np.ones((8, 8))}
    params = {name: value.astype(jnp.bfloat16) for name, value in params.items()}
    x = x.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        free, stopped = (
            predict(functools.partial(apply, stops), x, params=params, check=x, rescale=True)
            for stops in (False, True)
        )
    (layer,) = free.report.scales  # the branch that is taken
    assert (layer.path, layer.obstacle) == ("a + b", None)
    assert layer.factor < 1.01
    assert free.variables["a"].dtype == jnp.bfloat16
    (layer,) = stopped.report.scales
    assert layer.obstacle == "a part of its kernel is kept as initialised"
    np.testing.assert_array_equal(stopped.variables["b"], params["b"])


def test_an_architecture():
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32)
    plain = predict(ONE_OP["conv_3x3"], 8, check=images)
    assert len(plain.report.scales) > 3
    rescaled = ghn().predict(ONE_OP["conv_3x3"], 8, check=images, rescale=True)
    assert max(layer.factor for layer in rescaled.report.scales) < 1.001
    unchecked = ghn().predict(ONE_OP["conv_3x3"], 8, rescale="noise")
    assert unchecked.report.scales == ()
    with pytest.raises(
        ValueError, match=r"^check is an array of shape \(4, 9, 9, 3\) .*\(B, 8, 8,"
    ):
        ghn().predict(ONE_OP["conv_3x3"], 8, check=np.ones((4, 9, 9, 3), np.float32))


def test_the_table():
    report = predict(Plain(), IMAGES, check=IMAGES, rescale=True).report
    lines = str(report).splitlines()
    assert lines[-DEPTH - 2].split() == ["layer", "scale", "He's", "scale", "ratio"]
    path, scale, he_scale, ratio = lines[-1].split()
    layer = report.scales[-1]
    assert (path, ratio) == ("Dense_0/kernel", "1")
    assert (scale, he_scale) == (f"{layer.scale:.3g}", f"{layer.he_scale:.3g}")


def test_ratios_by_hand():
    assert LayerScale("a", 6.0, 2.0).ratio == 3
    assert LayerScale("a", 6.0, 2.0).factor == LayerScale("a", 2.0, 6.0).factor == 3
    assert LayerScale("a", 0.0, 0.0).factor == 1
    for scale, he_scale in ((1.0, 0.0), (0.0, 1.0), (np.inf, 1.0), (np.nan, 1.0)):
        assert LayerScale("a", scale, he_scale).factor == np.inf
    assert root_mean_square(np.array([3e30, 4e30], np.float32)) == pytest.approx(
        3.5355e30, rel=1e-4
    )
    assert root_mean_square(np.array([3 + 4j])) == 5


def test_state_of_the_initialiser_is_told():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for _ in range(DEPTH):
                x = nn.Conv(WIDTH, (3, 3))(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    with pytest.warns(UserWarning, match="did so with those of the initialiser: check the call"):
        ghn().predict(Deep(), IMAGES, train=False, check=IMAGES)
    ghn().predict(Deep(), IMAGES, train=True, check=IMAGES)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (IMAGES[:, :4], r"is an array of shape \(4, 4, 8, 3\) .* expected a batch of real images"),
        (IMAGES[0], r"is an array of shape \(8, 8, 3\) .*: \(B, 8, 8, 3\) float32$"),
        (IMAGES[:0], "is empty: an array of shape"),
        (np.where(IMAGES > 0.9, np.nan, IMAGES), r"has \d+ numbers that are NaN or infinite, expe"),
        ((4, 8, 8, 3), r"is \(4, 8, 8, 3\), expected a batch of real"),
        (jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32), "is an array of shape .* real images"),
        ((255 * IMAGES).astype(np.uint8), "is .* dtype uint8, expected a batch"),
        ([IMAGES, IMAGES], r"is \[array.*, expected a batch of real images"),
        ("digits", "is 'digits', expected a batch of real images"),
    ],
)
def test_errors_of_check(check, message):
    with pytest.raises(ValueError, match=f"(?s)^check {message}"):
        ghn().predict(Plain(), IMAGES, check=check)


def test_errors_of_other_arguments():
    with pytest.raises(
        ValueError, match=r"^rescale is 'image' \(did you mean 'images'\?\), expect"
    ):
        ghn().predict(Plain(), IMAGES, check=IMAGES, rescale="image")
    with pytest.raises(ValueError, match="^rescale is 'images', expected a batch of them: check="):
        ghn().predict(Plain(), IMAGES, rescale="images")
    keywords = {"call_kwargs": {"x": IMAGES}}
    with pytest.raises(ValueError, match="^check is given, but images is None, expected images"):
        ghn().predict(Plain(), None, check=IMAGES, **keywords)
    with pytest.raises(ValueError, match="^rescale is given without check, but images is None"):
        ghn().predict(Plain(), None, rescale=True, **keywords)

    class Rescaled(nn.Module):
        @nn.compact
        def __call__(self, x, rescale=2.0, weights=None):
            x = x * rescale if weights is None else x * weights[:, None]
            return nn.Dense(10)(x)

    x = np.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match="^rescale is an argument of predict and one of the netw"):
        ghn().predict(Rescaled(), x, rescale=True)
    own = {"rescale": np.float32(3)}
    (layer,) = predict(Rescaled(), x, call_kwargs=own, check=x, rescale="images").report.scales
    assert layer.factor < 1.001
    with pytest.raises(ValueError, match="^check has 3 images, expected 4 as of images: other arg"):
        ghn().predict(Rescaled(), x, weights=x[:, 0], check=x[:3])
    assert predict(Rescaled(), x, weights=x[:, 0], check=x).report.scales
