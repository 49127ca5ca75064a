"""Kernels of several parameters, chosen kernels, and convolutions spelled as sums."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_graphs import describe, kept, shapes, tensors, trace_function

from ghn_jax.tracing import fill_variables, trace

VECTORS = jax.ShapeDtypeStruct((4, 8), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((4, 5, 8), jnp.float32)
IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
NO_SHAPE = (0, 0, 0, 0)


def draw(traced):
    """Values for the tensors of a graph, by path, and the network's parameters with them."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(t.shape).astype(np.float32) for t in traced.graph.tensors]
    named = {"/".join(t.path): x for t, x in zip(traced.graph.tensors, arrays, strict=True)}
    return named, fill_variables(traced, arrays)


def images_like(shape):
    return np.random.default_rng(1).standard_normal(shape.shape).astype(np.float32)


class Recurrent(nn.Module):
    cell: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(self.cell(6), name="rnn")(x)[:, -1])


def test_the_twelve_tensors_of_an_optimized_lstm():
    traced = trace(Recurrent(nn.OptimizedLSTMCell), TOKENS)
    plain = trace(Recurrent(nn.LSTMCell), TOKENS)
    assert not kept(traced)

    def of_cell(traced):
        found = {path.split("/", 1)[1]: tensor for path, tensor in tensors(traced).items()}
        return {path: tensor for path, tensor in found.items() if "/" in path}

    assert of_cell(traced) == of_cell(plain)
    assert len(of_cell(traced)) == 12
    nodes = describe(traced)
    assert nodes.count(("conv", (6, 8, 1, 1), ("input",))) == 4
    assert nodes.count(("conv", (6, 6, 1, 1), ("input",))) == 4
    assert nodes.count(("bias", (6, 1, 1, 1), ("conv",))) == 4
    assert [primitive for primitive, _, _ in nodes].count("cse") == 3  # f c, i g, o tanh(c)


@pytest.mark.parametrize("axis", [0, 1])
def test_concatenated_kernels_are_layers_of_their_own(axis):
    def apply(params, x):
        return x @ jnp.concatenate([params["a"], params["b"]], axis=axis)

    sizes = {0: {"a": (6, 3), "b": (2, 3)}, 1: {"a": (8, 3), "b": (8, 2)}}[axis]
    traced = trace_function(apply, VECTORS, **sizes)
    assert not kept(traced)
    assert tensors(traced) == {name: (shape, "kernel") for name, shape in sizes.items()}
    primitive = "sum" if axis == 0 else "concat"
    assert (primitive, NO_SHAPE, ("conv", "conv")) in describe(traced)


def test_concatenations_are_followed_through_transposes_and_splits():
    def apply(params, x):
        kernel = jnp.concatenate([params["a"], params["b"]], axis=0).T[None]
        first, second = jnp.split(kernel[0], [3], axis=1)
        return jnp.concatenate([x @ first, jnp.tanh(x @ second)], axis=1)

    traced = trace_function(apply, VECTORS, a=(3, 8), b=(2, 8))
    assert not kept(traced)
    assert tensors(traced) == {"a": ((8, 3), "kernel"), "b": ((8, 2), "kernel")}
    named, params = draw(traced)
    np.testing.assert_array_equal(params["a"], named["a"].T)


def test_concatenated_biases_and_positions():
    def apply(params, x):
        x = x + jnp.concatenate([params["token"], params["patches"]])[None]
        x = x @ params["w"]
        return x + jnp.concatenate([params["a"], params["b"]])[None, None]

    traced = trace_function(apply, TOKENS, token=(1, 8), patches=(4, 8), w=(8, 6), a=(2,), b=(4,))
    assert not kept(traced)
    assert tensors(traced) == {
        "token": ((1, 1, 1, 8), "position"),
        "patches": ((1, 2, 2, 8), "position"),
        "w": ((8, 6), "kernel"),
        "a": ((2,), "bias"),
        "b": ((4,), "bias"),
    }


def test_a_function_of_a_concatenation_is_kept():
    def apply(params, x):
        return x @ jnp.concatenate([params["a"], params["b"]], axis=1).reshape(8, 2, 2)[:, :, 0]

    traced = trace_function(apply, VECTORS, a=(8, 1), b=(8, 3))
    assert kept(traced) == dict.fromkeys("ab", "is concatenated with others before use")


MERGED = {
    "kernel": lambda p: p["w"] + 0.5 * (p["a"] @ p["b"]),
    "transposed": lambda p: (p["w"].T + (p["b"].T @ p["a"].T)).T,
    "einsum": lambda p: jnp.einsum("ir,ro->io", p["a"], p["b"]) + p["w"],
    "subtracted": lambda p: p["w"] - p["a"] @ p["b"],
    "two": lambda p: p["w"] + p["a"] @ p["b"] + p["a"] @ p["b"],
}


@pytest.mark.parametrize("name", MERGED)
def test_merged_low_rank_updates(name):
    def apply(params, x):
        return x @ MERGED[name](params)

    traced = trace_function(apply, VECTORS, w=(8, 6), a=(8, 2), b=(2, 6))
    assert not kept(traced)
    assert tensors(traced) == {
        "w": ((8, 6), "kernel"),
        "a": ((8, 2), "kernel"),
        "b": ((2, 6), "kernel"),
    }
    nodes = describe(traced)
    for node in [("conv", (6, 8, 1, 1), ("input",)), ("conv", (2, 8, 1, 1), ("input",)),
                 ("conv", (6, 2, 1, 1), ("conv",))]:  # fmt: skip
        assert node in nodes


HEADS = {  # of kernels (8, 2, 3): inputs, heads, features
    "reshaped": (lambda p: p["w"] + (p["a"] @ p["b"]).reshape(8, 2, 3), (2, 6)),
    "einsum": (lambda p: p["w"] + jnp.einsum("ir,rhd->ihd", p["a"], p["b"]), (2, 2, 3)),
    "moved": (
        lambda p: jnp.transpose(
            jnp.transpose(p["w"], (1, 2, 0)) + (p["a"] @ p["b"]).T.reshape(2, 1, 3, 8)[:, 0],
            (2, 0, 1),
        ),
        (2, 6),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_low_rank_updates_of_heads(name):
    """Whatever their axes become, as long as those of both factors stay apart."""
    merge, shape = HEADS[name]

    def apply(params, x):
        return jnp.einsum("bi,ihd->bhd", x, merge(params))

    traced = trace_function(apply, VECTORS, w=(8, 2, 3), a=(8, 2), b=shape)
    assert not kept(traced)
    named, params = draw(traced)
    x = images_like(VECTORS)
    expected = x @ named["w"] + x @ named["a"] @ named["b"]
    np.testing.assert_allclose(apply(params, x).reshape(4, 6), expected, rtol=1e-4, atol=1e-5)


IS_MULTIPLIED = "is multiplied with another parameter before use"
HWIO, OIHW = ("NHWC", "HWIO", "NHWC"), ("NHWC", "OIHW", "NHWC")
WINDOWS = {  # kernels of 3 x 3 x 4 x 6: how they are merged, shapes of w, a and b, the layout
    "reshaped": (lambda p: p["w"] + (p["a"] @ p["b"]).reshape(3, 3, 4, 6),
                 (3, 3, 4, 6), (36, 2), (2, 6), HWIO),
    "einsum": (lambda p: p["w"] - jnp.einsum("hwir,ro->hwio", p["a"], p["b"]),
               (3, 3, 4, 6), (3, 3, 4, 2), (2, 6), HWIO),
    "output first": (lambda p: p["w"] + (p["b"] @ p["a"]).reshape(6, 4, 3, 3) * 0.5,
                     (6, 4, 3, 3), (2, 36), (6, 2), OIHW),
    "transposed": (lambda p: jnp.transpose((p["b"] @ p["a"]).reshape(6, 3, 3, 4), (1, 2, 3, 0))
                   + p["w"], (3, 3, 4, 6), (2, 36), (6, 2), HWIO),
}  # fmt: skip


def convolve(x, kernel, layout=HWIO):
    return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)


@pytest.mark.parametrize("name", WINDOWS)
def test_low_rank_updates_of_convolutions(name):
    merge, w, a, b, layout = WINDOWS[name]

    def apply(params, x):
        return convolve(x, merge(params), layout)

    traced = trace_function(apply, IMAGES, w=w, a=a, b=b)
    assert not kept(traced)
    assert tensors(traced) == {
        "w": ((3, 3, 4, 6), "kernel"), "a": ((3, 3, 4, 2), "kernel"), "b": ((2, 6), "kernel")
    }  # fmt: skip
    assert ("conv", (6, 2, 1, 1), ("conv",)) in describe(traced)
    named, params = draw(traced)
    x = images_like(IMAGES)
    # What the graph says: a convolution by w, beside one by a with b behind it.
    expected = convolve(x, named["w"]) + convolve(x, named["a"]) @ named["b"]
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-4, atol=1e-4)


def test_a_low_rank_update_whose_axes_mix_is_kept():
    def apply(params, x):
        update = (params["b"] @ params["a"]).reshape(6, 4, 3, 3)  # as loralib does
        return convolve(x, params["w"] + update, OIHW)

    traced = trace_function(apply, IMAGES, w=(6, 4, 3, 3), a=(6, 12), b=(18, 6))
    assert kept(traced) == dict.fromkeys("ab", IS_MULTIPLIED)
    assert tensors(traced) == {"w": ((3, 3, 4, 6), "kernel")}


def test_a_sum_of_two_convolutions_kernels():
    traced = trace_function(
        lambda p, x: convolve(x, p["a"] + p["b"]), IMAGES, a=(3, 3, 4, 6), b=(3, 3, 4, 6)
    )
    assert not kept(traced)
    assert ("sum", NO_SHAPE, ("conv", "conv")) in describe(traced)


def test_a_function_of_a_low_rank_update_is_kept():
    def apply(params, x):
        return x @ jnp.tanh(params["w"] + params["a"] @ params["b"])

    traced = trace_function(apply, VECTORS, w=(8, 6), a=(8, 2), b=(2, 6))
    assert kept(traced) == {
        "w": "is no rearrangement of one parameter when it meets the data",
        "a": "is multiplied with another parameter before use",
        "b": "is multiplied with another parameter before use",
    }


def experts_apply(params, x):
    shares, chosen = lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
    hidden = jnp.einsum("bc,bkcd->bkd", x, params["first"][chosen])
    return jnp.einsum("bkd,bkde,bk->be", nn.relu(hidden), params["second"][chosen], shares)


def test_experts_that_a_router_chooses():
    sizes = {"router": (8, 3), "first": (3, 8, 6), "second": (3, 6, 8)}
    traced = trace_function(experts_apply, VECTORS, **sizes)
    assert not kept(traced)
    # One group for each of three experts.
    assert tensors(traced) == {
        "router": ((8, 3), "kernel"),
        "first": ((8, 18), "kernel"),
        "second": ((6, 24), "kernel"),
    }
    nodes = describe(traced)
    assert ("sep_conv", (18, 8, 1, 1), ("input",)) in nodes
    assert ("sep_conv", (24, 6, 1, 1), ("cse",)) in nodes
    assert "msa" not in [primitive for primitive, _, _ in nodes]
    named, params = draw(traced)
    for index in range(3):
        expected = named["first"][:, 6 * index : 6 * index + 6]
        np.testing.assert_array_equal(params["first"][index], expected)


def test_a_chosen_expert_in_other_layouts():
    def apply(params, x):
        chosen = jnp.argmax(x[:, :3], axis=-1)
        kernel = jnp.swapaxes(params["w"][:, chosen], 0, 1).reshape(-1, 6, 8) * 2.0
        return jax.vmap(lambda kernel, x: kernel @ x)(kernel, x)

    traced = trace_function(apply, VECTORS, w=(2, 3, 3, 8))
    assert not kept(traced)
    assert tensors(traced)["w"] == ((8, 18), "kernel")
    named, params = draw(traced)
    for index in range(3):
        # Half of what is predicted, which the network doubles.
        expected = named["w"][:, 6 * index : 6 * index + 6].T.reshape(2, 3, 8) / 2
        np.testing.assert_array_equal(params["w"][:, index], expected)


def test_a_chosen_kernel_of_no_use_as_one_is_an_embedding():
    def apply(params, tokens):
        return params["w"][tokens].sum(1)

    traced = trace(apply, jax.ShapeDtypeStruct((4, 7), jnp.int32), params=shapes(w=(9, 2, 3)))
    assert tensors(traced) == {"w": ((9, 6), "embedding")}
    assert describe(traced)[0] == ("conv", (6, 9, 1, 1), ("input",))


def pad(x, before, after=(0, 0)):
    return jnp.pad(x, [(0, 0), *zip(before, after, strict=False), (0, 0)])


def causal_by_slices(w, x):
    padded = pad(x, (2,))
    return sum(padded[:, i : i + 5] * w[i][None, None] for i in range(3))


def causal_by_padding(w, x):
    return sum(pad(x, (2 - i,))[:, :5] * w[i][None, None] for i in range(3))


def causal_by_zeros(w, x):
    total = x * w[2][None, None]
    for i in (1, 2):
        zeros = jnp.zeros((x.shape[0], i, 8))
        total += jnp.concatenate([zeros, x[:, :-i]], axis=1) * w[2 - i][None, None]
    return total


def causal_backwards(w, x):
    return causal_by_slices(w[::-1], x)


CAUSAL = {
    "slices": (causal_by_slices, (3, 8), lambda w: w[:, None, None]),
    "padding": (causal_by_padding, (3, 8), lambda w: w[:, None, None]),
    "zeros": (causal_by_zeros, (3, 8), lambda w: w[:, None, None]),
    "backwards": (causal_backwards, (3, 8), lambda w: w[::-1, None, None]),
    "channels first": (
        lambda w, x: causal_by_slices(jnp.swapaxes(w, 0, 1), x),
        (8, 3),
        lambda w: w.T[:, None, None],
    ),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_sums_of_shifted_products_are_depthwise_convolutions(name):
    function, shape, as_kernel = CAUSAL[name]
    traced = trace_function(lambda params, x: function(params["w"], x), TOKENS, w=shape)
    assert describe(traced) == [("sep_conv", (8, 1, 3, 1), ("input",))]
    assert tensors(traced) == {"w": ((3, 1, 1, 8), "depthwise")}
    named, params = draw(traced)
    np.testing.assert_array_equal(as_kernel(params["w"]), named["w"])
    x = images_like(TOKENS)
    expected = lax.conv_general_dilated(
        x[:, :, None], named["w"], (1, 1), ((2, 0), (0, 0)), feature_group_count=8,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[:, :, 0]  # fmt: skip
    np.testing.assert_allclose(function(params["w"], x), expected, rtol=1e-5, atol=1e-5)


def grid_of_products(w, x, spacing):
    padded = pad(x, (spacing, spacing), (spacing, spacing))
    taps = [(i, j) for i in range(3) for j in range(3)]
    parts = [
        padded[:, spacing * i : spacing * i + 8, spacing * j : spacing * j + 8]
        * w[i, j][None, None, None]
        for i, j in taps
    ]
    return functools.reduce(jnp.add, parts)


@pytest.mark.parametrize(("spacing", "primitive"), [(1, "sep_conv"), (2, "dil_conv")])
def test_shifts_along_two_axes(spacing, primitive):
    def apply(params, x):
        return grid_of_products(params["w"], x, spacing) + params["bias"][None, None, None]

    traced = trace_function(apply, IMAGES, w=(3, 3, 4), bias=(4,))
    assert describe(traced) == [
        ("bias", (4, 1, 1, 1), (primitive,)),
        (primitive, (4, 1, 3, 3), ("input",)),
    ]
    named, params = draw(traced)
    x = images_like(IMAGES)
    expected = lax.conv_general_dilated(
        x, named["w"], (1, 1), ((spacing, spacing),) * 2, rhs_dilation=(spacing, spacing),
        feature_group_count=4, dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    found = grid_of_products(params["w"], x, spacing)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_kernels_of_scanned_layers():
    def apply(params, x):
        return lax.scan(lambda x, w: (nn.relu(causal_by_slices(w, x)), None), x, params["w"])[0]

    traced = trace_function(apply, TOKENS, w=(2, 3, 8))
    assert [(t.shape, t.role) for t in traced.graph.tensors] == [((3, 1, 1, 8), "depthwise")] * 2
    filled = fill_variables(traced, [np.full((3, 1, 1, 8), i) for i in range(2)])["w"]
    np.testing.assert_array_equal(filled[:, :, 0], [[0, 0, 0], [1, 1, 1]])


ALMOST = {
    "of two parameters": (
        lambda p, x: x[:, 1:] * p["w"][0][None, None] + x[:, :-1] * p["v"][0][None, None]
    ),
    "at uneven places": lambda p, x: sum(
        pad(x, (8,))[:, place : place + 5] * p["w"][i][None, None]
        for i, place in enumerate([0, 1, 5])
    ),
    "mixed with its own complement": (
        lambda p, x: x * p["v"][0][None, None] + pad(x, (1,))[:, :-1] * (1 - p["v"][0][None, None])
    ),
}


@pytest.mark.parametrize("name", ALMOST)
def test_other_sums_of_scaled_data_are_none(name):
    traced = trace_function(ALMOST[name], TOKENS, w=(3, 8), v=(1, 8))
    primitives = [primitive for primitive, _, _ in describe(traced)]
    assert "sep_conv" not in primitives and "sum" in primitives
