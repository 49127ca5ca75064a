"""Small networks whose graphs are known by hand, rule by rule."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_graphs import describe, kept, shapes, tensors, trace_function

from ghn_jax.tracing import Data, fill_variables, register_rule, trace
from ghn_jax.tracing.registry import RULES

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)


LAYOUTS = {  # (images, kernel, output), spatial and channel sizes of the kernel
    "NHWC HWIO": (("NHWC", "HWIO", "NHWC"), (3, 5, 4, 6), (2, 8, 8, 4)),
    "NCHW OIHW": (("NCHW", "OIHW", "NCHW"), (6, 4, 3, 5), (2, 4, 8, 8)),
    "HWNC IHWO": (("HWNC", "IHWO", "HWNC"), (4, 3, 5, 6), (8, 8, 2, 4)),
}


@pytest.mark.parametrize("name", ["NHWC HWIO", "NCHW OIHW"])
def test_convolutions_of_any_layout(name):
    layout, kernel, image = LAYOUTS[name]

    def apply(params, x):
        return lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=layout)

    traced = trace_function(apply, jax.ShapeDtypeStruct(image, jnp.float32), w=kernel)
    assert describe(traced) == [("conv", (6, 4, 3, 5), ("input",))]
    assert tensors(traced) == {"w": ((3, 5, 4, 6), "kernel")}
    predicted = np.random.default_rng(0).standard_normal((3, 5, 4, 6))
    restored = fill_variables(traced, [predicted])["w"]
    order = {"NHWC HWIO": (0, 1, 2, 3), "NCHW OIHW": (3, 2, 0, 1)}[name]
    np.testing.assert_array_equal(restored, predicted.transpose(order).astype(np.float32))


@pytest.mark.parametrize(
    ("fields", "primitive", "shape", "role"),
    [
        ({}, "conv", (8, 4, 3, 3), "kernel"),
        ({"kernel_dilation": 2}, "conv", (8, 4, 3, 3), "kernel"),
        ({"feature_group_count": 2}, "sep_conv", (8, 2, 3, 3), "kernel"),
        ({"feature_group_count": 4}, "sep_conv", (8, 1, 3, 3), "depthwise"),
        ({"feature_group_count": 4, "kernel_dilation": 2}, "dil_conv", (8, 1, 3, 3), "depthwise"),
    ],
)
def test_groups_and_dilation(fields, primitive, shape, role):
    traced = trace(nn.Conv(8, (3, 3), use_bias=False, **fields), IMAGES)
    assert describe(traced) == [(primitive, shape, ("input",))]
    assert tensors(traced) == {"kernel": ((3, 3, shape[1], 8), role)}


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_a_transposed_convolution(transpose_kernel):
    module = nn.ConvTranspose(6, (3, 3), strides=(2, 2), transpose_kernel=transpose_kernel)
    traced = trace(module, IMAGES)
    assert describe(traced) == [
        ("bias", (6, 1, 1, 1), ("conv",)),
        ("conv", (6, 4, 3, 3), ("input",)),
    ]
    assert not kept(traced)


def test_one_and_three_spatial_axes():
    line = trace(nn.Conv(6, (3,), use_bias=False), TOKENS)
    assert describe(line) == [("conv", (6, 8, 3, 1), ("input",))]
    volume = jax.ShapeDtypeStruct((2, 4, 8, 8, 3), jnp.float32)
    traced = trace(nn.Conv(6, (2, 3, 5), use_bias=False), volume)
    assert describe(traced) == [("conv", (6, 2 * 3, 3, 5), ("input",))]
    predicted = np.arange(3 * 5 * 6 * 6).reshape(3, 5, 2, 3, 6)  # (h, w, d, in, out)
    restored = fill_variables(traced, [predicted.reshape(3, 5, 6, 6)])["params"]["kernel"]
    np.testing.assert_array_equal(restored, predicted.transpose(2, 0, 1, 3, 4))


def test_einsums_with_a_parameter():
    def apply(params, x):
        x = jnp.einsum("btc,hcd->bthd", x, params["heads"]) + params["bias"][None, None]
        return jnp.einsum("bthd,dhe->bte", x, params["out"])

    traced = trace_function(apply, TOKENS, heads=(2, 8, 3), bias=(2, 3), out=(3, 2, 7))
    assert describe(traced) == [
        ("bias", (6, 1, 1, 1), ("conv",)),
        ("conv", (6, 8, 1, 1), ("input",)),
        ("conv", (7, 6, 1, 1), ("bias",)),
    ]
    assert tensors(traced)["heads"] == ((8, 6), "kernel")
    arrays = [np.zeros(t.shape) for t in traced.graph.tensors]
    names = [t.path[0] for t in traced.graph.tensors]
    arrays[names.index("heads")] = np.arange(48).reshape(8, 6)
    restored = fill_variables(traced, arrays)["heads"]
    np.testing.assert_array_equal(restored, np.arange(48).reshape(8, 2, 3).transpose(1, 0, 2))


def test_a_kernel_is_found_through_casts_and_weight_standardisation():
    def apply(params, x):
        w = params["w"].reshape(3, 3, 4, 6).astype(jnp.bfloat16)
        mean = jnp.mean(w, axis=(0, 1, 2), keepdims=True)
        w = (w - mean) * lax.rsqrt(jnp.var(w, axis=(0, 1, 2), keepdims=True) + 1e-5)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x.astype(jnp.bfloat16), w, (1, 1), "SAME", dimension_numbers=layout
        )

    traced = trace_function(apply, IMAGES, w=(36, 6))
    assert describe(traced) == [("conv", (6, 4, 3, 3), ("input",))]
    assert tensors(traced) == {"w": ((3, 3, 4, 6), "kernel")}


NORMS = {
    "batch": (functools.partial(nn.BatchNorm, use_running_average=False), "bn"),
    "running": (functools.partial(nn.BatchNorm, use_running_average=True), "bn"),
    "layer": (nn.LayerNorm, "ln"),
    "slow layer": (functools.partial(nn.LayerNorm, use_fast_variance=False), "ln"),
    "group": (functools.partial(nn.GroupNorm, num_groups=2), "ln"),
    "instance": (nn.InstanceNorm, "ln"),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_one_node(name):
    norm, primitive = NORMS[name]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (3, 3))(x)
            return nn.Dense(3)(nn.relu(norm()(x)))

    traced = trace(Net(), IMAGES)
    nodes = describe(traced)
    assert (primitive, (6, 1, 1, 1), ("bias",)) in nodes
    assert len(nodes) == 5
    roles = sorted(role for _, role in tensors(traced).values())
    assert roles == ["bias", "bias", "bias", "kernel", "kernel", "scale"]
    assert all(path.startswith("batch_stats/") for path in kept(traced))


def test_rms_norm_and_norms_with_one_parameter():
    for module in (nn.RMSNorm(), nn.LayerNorm(use_bias=False), nn.LayerNorm(use_scale=False)):
        traced = trace(module, TOKENS)
        assert describe(traced) == [("ln", (8, 1, 1, 1), ("input",))]
        assert not kept(traced)


def test_a_norm_of_pooled_features():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.LayerNorm()(jnp.mean(x, axis=(1, 2))))

    assert describe(trace(Net(), IMAGES)) == [
        ("bias", (3, 1, 1, 1), ("conv",)),
        ("conv", (3, 4, 1, 1), ("ln",)),
        ("glob_avg", (0, 0, 0, 0), ("input",)),
        ("ln", (4, 1, 1, 1), ("glob_avg",)),
    ]


def split_heads(x):
    return x.reshape(*x.shape[:2], 2, -1)


def by_einsum(q, k, v):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


def by_masked_matmul(q, k, v):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    logits = q @ jnp.swapaxes(k, -1, -2)
    mask = jnp.tril(jnp.ones(logits.shape, bool))
    logits = jnp.where(mask, logits, -1e9)
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits)
    return jnp.swapaxes(weights / jnp.sum(weights, axis=-1, keepdims=True) @ v, 1, 2)


def by_dividing_last(q, k, v):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    logits = q @ jnp.swapaxes(k, -1, -2)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return jnp.swapaxes(weights @ v / jnp.sum(weights, axis=-1, keepdims=True), 1, 2)


ATTENTIONS = {
    "einsum": by_einsum,
    "dividing last": by_dividing_last,
    "matmul": by_masked_matmul,
    "jax.nn": jax.nn.dot_product_attention,
    "causal": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
    "flax": nn.dot_product_attention,
    "multi-query": lambda q, k, v: jax.nn.dot_product_attention(q, k[:, :, :1], v[:, :, :1]),
    "linear": lambda q, k, v: jnp.einsum(
        "bqhd,bhde->bqhe", jax.nn.elu(q), jnp.einsum("bkhd,bkhe->bhde", jax.nn.elu(k), v)
    ),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_in_any_spelling(name):
    def apply(params, x):
        q, k, v = (split_heads(x @ params[name]) for name in "qkv")
        y = ATTENTIONS[name](q, k, v)
        return y.reshape(x.shape) @ params["out"]

    traced = trace_function(apply, TOKENS, q=(8, 8), k=(8, 8), v=(8, 8), out=(8, 8))
    kernel = (8, 8, 1, 1)
    assert describe(traced) == [
        *([("conv", kernel, ("input",))] * 3),
        ("conv", kernel, ("msa",)),
        ("msa", (0, 0, 0, 0), ("conv", "conv", "conv")),
    ]


def test_flax_attention():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))

    traced = trace(Net(), TOKENS)
    nodes = describe(traced)
    assert ("msa", (0, 0, 0, 0), ("bias", "bias", "bias")) in nodes
    assert ("sum", (0, 0, 0, 0), ("bias", "input")) in nodes
    assert len(nodes) == 3 * 2 + 2 + 1 + 1 + 1  # projections, output, ln, msa, sum
    assert not kept(traced)


@pytest.mark.parametrize("gate", [jax.nn.sigmoid, jax.nn.hard_swish, jax.nn.softplus])
def test_a_squeeze_excitation_gate(gate):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (1, 1), use_bias=False)(x)
            y = jnp.mean(x, axis=(1, 2), keepdims=True)
            y = nn.relu(nn.Conv(2, (1, 1), use_bias=False)(y))
            return nn.silu(x * gate(nn.Conv(6, (1, 1), use_bias=False)(y)))

    assert describe(trace(Net(), IMAGES)) == [
        ("conv", (2, 6, 1, 1), ("conv",)),
        ("conv", (6, 2, 1, 1), ("conv",)),
        ("conv", (6, 4, 1, 1), ("input",)),
        ("cse", (0, 0, 0, 0), ("conv", "conv")),
    ]


def shifted_max(x):
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    parts = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    total = parts[0]
    for part in parts[1:]:
        total = jnp.maximum(total, part)
    return total


def window_mean(x, size, stride):
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, 0.0, lax.add, window, strides, "VALID") / size**2


def strided_mean(x):
    parts = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
    return sum(parts[1:], parts[0]) / 4


POOLS = {
    "max": (lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"), ("max_pool", (1, 1, 3, 3))),
    "avg": (lambda x: window_mean(x, 2, 2), ("avg_pool", (1, 1, 2, 2))),
    "shifted max": (shifted_max, ("max_pool", (1, 1, 3, 3))),
    "strided mean": (strided_mean, ("avg_pool", (1, 1, 2, 2))),
    "mean": (lambda x: jnp.mean(x, axis=(1, 2)), ("glob_avg", (0, 0, 0, 0))),
    "whole window": (lambda x: window_mean(x, 8, 1), ("glob_avg", (0, 0, 0, 0))),
    "global max": (lambda x: jnp.max(x, axis=(1, 2)), ("max_pool", (1, 1, 8, 8))),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name):
    pool_fn, (primitive, shape) = POOLS[name]
    traced = trace_function(lambda params, x: pool_fn(x) @ params["w"], IMAGES, w=(4, 3))
    expected = [("conv", (3, 4, 1, 1), (primitive,)), (primitive, shape, ("input",))]
    assert describe(traced) == sorted(expected)


def test_sums_and_concats_need_two_different_inputs():
    def apply(params, x):
        y = x @ params["w"]
        y = jnp.concatenate([y, jnp.zeros_like(y)], axis=-1)  # no node
        y = y + jnp.tanh(y)  # no node
        z = jnp.concatenate([x, jax.nn.gelu(x)], axis=-1)  # no node
        return jnp.concatenate([y + z, x], axis=-1)

    assert describe(trace_function(apply, TOKENS, w=(8, 8))) == [
        ("concat", (0, 0, 0, 0), ("input", "sum")),
        ("conv", (8, 8, 1, 1), ("input",)),
        ("sum", (0, 0, 0, 0), ("conv", "input")),
    ]


def test_class_tokens_and_positions():
    """(1, n, C) has the shape (1, C, s, s), s = floor(sqrt(n)); tokens beyond s * s come first."""

    def apply(params, x):
        token = jnp.broadcast_to(params["token"], (x.shape[0], 1, 8))
        x = jnp.concatenate([token, x], axis=1) + params["position"]
        return x[:, 0] @ params["w"]

    traced = trace_function(apply, TOKENS, token=(1, 1, 8), position=(1, 6, 8), w=(8, 3))
    assert describe(traced) == [
        ("concat", (0, 0, 0, 0), ("input", "pos_enc")),
        ("conv", (3, 8, 1, 1), ("sum",)),
        ("pos_enc", (1, 8, 1, 1), ()),
        ("pos_enc", (1, 8, 2, 2), ()),
        ("sum", (0, 0, 0, 0), ("concat", "pos_enc")),
    ]
    found = tensors(traced)
    assert found["position"] == ((1, 2, 2, 8), "position")
    assert found["token"] == ((1, 1, 1, 8), "position")
    grid = np.arange(32.0).reshape(1, 2, 2, 8)
    arrays = [grid if t.path == ("position",) else np.zeros(t.shape) for t in traced.graph.tensors]
    rows = fill_variables(traced, arrays)["position"][0]
    np.testing.assert_array_equal(rows[2:], grid.reshape(4, 8))
    np.testing.assert_array_equal(rows[:2], grid.reshape(4, 8)[:2])


def test_a_learned_query_pools_by_attention():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            probe = self.param("probe", nn.initializers.normal(), (1, 1, 8))
            probe = jnp.tile(probe, [x.shape[0], 1, 1])
            return nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False)(probe, x)

    traced = trace(Net(), TOKENS)
    nodes = describe(traced)
    assert ("pos_enc", (1, 8, 1, 1), ()) in nodes
    assert ("conv", (8, 8, 1, 1), ("pos_enc",)) in nodes
    assert ("msa", (0, 0, 0, 0), ("conv", "conv", "conv")) in nodes
    assert not kept(traced)


def test_layer_scale_is_taken_for_a_layer_norm():
    def apply(params, x):
        return x + params["scale"] * (x @ params["w"])

    traced = trace_function(apply, TOKENS, scale=(1, 1, 8), w=(8, 8))
    assert ("ln", (8, 1, 1, 1), ("conv",)) in describe(traced)
    assert tensors(traced)["scale"] == ((8,), "scale")


def test_an_embedding_and_its_tied_output():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(50, 8)
            position = nn.Embed(5, 8, name="position")(jnp.arange(5))
            return embed.attend(nn.LayerNorm()(embed(tokens) + position[None]))

    traced = trace(Net(), jax.ShapeDtypeStruct((2, 5), jnp.int32))
    nodes = describe(traced)
    assert ("conv", (8, 50, 1, 1), ("input",)) in nodes
    assert ("pos_enc", (1, 8, 2, 2), ()) in nodes
    assert ("conv", (50, 8, 1, 1), ("ln",)) in nodes
    assert tensors(traced)["Embed_0/embedding"] == ((50, 8), "embedding")
    assert not kept(traced)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(8)(nn.LayerNorm()(x)), None


def test_scanned_layers_are_predicted_one_by_one():
    scanned = nn.scan(
        nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scanned(name="layers")(x, None)[0]

    traced = trace(Net(), TOKENS)
    assert not kept(traced)
    nodes = describe(traced)
    assert len([node for node in nodes if node[0] == "conv"]) == 3
    assert ("sum", (0, 0, 0, 0), ("bias", "sum")) in nodes
    kernels = [t for t in traced.graph.tensors if t.path[-1] == "kernel"]
    assert [t.shape for t in kernels] == [(8, 8)] * 3
    assert [t.node for t in kernels] == sorted({t.node for t in kernels})
    arrays = [np.full(t.shape, t.node) for t in traced.graph.tensors]
    filled = fill_variables(traced, arrays)["params"]["layers"]["Dense_0"]["kernel"]
    assert filled[:, 0, 0].tolist() == [t.node for t in kernels]


def test_a_recurrent_network_has_every_layer_once():
    traced = trace(nn.RNN(nn.SimpleCell(6)), TOKENS)
    nodes = describe(traced)
    assert ("conv", (6, 8, 1, 1), ("input",)) in nodes
    assert len([node for node in nodes if node[0] == "conv"]) == 2
    assert not kept(traced)


def test_nested_calls_and_control_flow():
    @jax.custom_vjp
    def square(x, w):
        return x @ w

    square.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))

    def apply(params, x):
        x = jax.checkpoint(jax.jit(lambda x: x @ params["a"]))(x)
        x = square(x.reshape(-1, 8), params["b"])
        x = lax.cond(True, lambda x: x @ params["c"], lambda x: x, x)
        x = lax.while_loop(lambda x: jnp.all(x < 9), lambda x: x @ params["d"], x)
        return lax.fori_loop(0, 3, lambda _, x: x + params["e"], x)

    traced = trace_function(apply, TOKENS, a=(8, 8), b=(8, 8), c=(8, 8), d=(8, 8), e=(1, 8))
    assert not kept(traced)
    kernel = (8, 8, 1, 1)
    assert describe(traced) == [
        ("bias", (8, 1, 1, 1), ("conv",)),
        ("conv", kernel, ("conv",)),
        ("conv", kernel, ("conv",)),
        ("conv", kernel, ("input",)),
        ("conv", kernel, ("sum",)),
        ("sum", (0, 0, 0, 0), ("conv", "conv")),
    ]


def test_shared_parameters_are_predicted_for_their_first_node():
    def apply(params, x):
        return jax.nn.relu(x @ params["w"]) @ params["w"]

    traced = trace_function(apply, TOKENS, w=(8, 8))
    assert [node[0] for node in describe(traced)] == ["conv", "conv"]
    (tensor,) = traced.graph.tensors
    assert tensor.node == 1


def test_parts_of_a_parameter_are_predicted_for_their_nodes():
    def apply(params, x):
        q, k, v = (split_heads(x @ w) for w in jnp.split(params["qkv"], 3, axis=1))
        return jax.nn.dot_product_attention(q, k, v)

    traced = trace_function(apply, TOKENS, qkv=(8, 24))
    assert [t.shape for t in traced.graph.tensors] == [(8, 8)] * 3
    arrays = [np.full((8, 8), i) for i in range(3)]
    np.testing.assert_array_equal(
        fill_variables(traced, arrays)["qkv"][0], np.repeat(np.arange(3), 8)
    )


def test_every_parameter_without_prediction_has_a_reason():
    def apply(params, x):
        y = x @ jnp.tanh(params["a"] @ params["b"])
        y = jnp.maximum(y, params["floor"])
        y = y @ params["table"][:6, :].T
        logits = jnp.einsum("btc,bsc->bts", y, y) + params["distances"]
        y = jnp.einsum("bts,bsc->btc", jax.nn.softmax(logits), y)
        return y + 0 * jnp.linalg.norm(params["unread"])

    traced = trace(
        apply,
        TOKENS,
        params=shapes(
            a=(8, 2), b=(2, 8), floor=(1, 1, 8), table=(9, 8), distances=(1, 5, 5), unread=(3,),
            unused=(4,),
        ),
    )  # fmt: skip
    assert kept(traced) == {
        "a": "is multiplied with another parameter before use",
        "b": "is multiplied with another parameter before use",
        "floor": "meets the data in max, which has no rule for parameters",
        "table": "only 48 of its 72 elements are used",
        "distances": "acts on attention logits, which are no node",
        "unread": "is computed from parameters before it meets the data",
        "unused": "the output does not depend on it",
    }
    assert not traced.graph.tensors


def test_what_does_not_reach_the_output_is_not_in_the_graph():
    def apply(params, x):
        (x @ params["dead"]).sum()
        return x @ params["w"]

    traced = trace_function(apply, TOKENS, dead=(8, 8), w=(8, 3))
    assert describe(traced) == [("conv", (3, 8, 1, 1), ("input",))]
    assert kept(traced) == {"dead": "the output does not depend on it"}


def test_a_rule_can_be_registered(monkeypatch):
    monkeypatch.setattr("ghn_jax.tracing.registry.RULES", dict(RULES))
    monkeypatch.setitem(RULES, "jit:mix", None)

    @jax.jit
    def mix(x, y):
        return jnp.sin(x) * y

    @register_rule("jit:mix")
    def rule(builder, eqn, inputs):
        return Data((builder.node("msa", [builder.node_of(x) for x in inputs]),))

    RULES["jit:mix"] = rule
    traced = trace_function(lambda p, x: mix(x, x @ p["w"]), TOKENS, w=(8, 8))
    assert ("msa", (0, 0, 0, 0), ("conv", "input")) in describe(traced)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="params is missing: .* is a function"):
        trace(lambda params, x: x, TOKENS)
    with pytest.raises(ValueError, match="expected a Flax, NNX or Equinox module"):
        trace(3, TOKENS)
    with pytest.raises(ValueError, match="output does not depend on images"):
        trace(lambda params, x: params["w"], TOKENS, params=shapes(w=(3,)))
    with pytest.raises(ValueError, match="expected arrays with a batch axis"):
        trace(nn.Dense(3), 5)
    with pytest.raises(ValueError, match=r"names is \(\), expected names of primitives"):
        register_rule()
