"""Gates, attention and norms: each with the network that has it, and one that nearly does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from small_graphs import describe, kept, tensors, trace_function

from ghn_jax.tracing import trace

TOKENS = jax.ShapeDtypeStruct((4, 5, 8), jnp.float32)
NO_SHAPE = (0, 0, 0, 0)
ON_LOGITS = "acts on attention logits, which are no node"


def primitives(traced):
    return [primitive for primitive, _, _ in describe(traced)]


def rms_norm(x, scale):
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale


def attend(logits, values):
    return jnp.einsum("bts,bsc->btc", jax.nn.softmax(logits), values)


def project(params, x, names):
    return [x @ params[name] for name in names]


def test_what_acts_on_attention_logits_is_kept():
    def apply(params, x):
        q, k, v = project(params, x, "qkv")
        logits = jnp.einsum("btc,bsc->bts", q, k) * params["scale"] + params["bias"]
        return attend(logits, v)

    traced = trace_function(apply, TOKENS, q=(8, 6), k=(8, 6), v=(8, 6),
                            scale=(1, 5, 5), bias=(1, 5, 5))  # fmt: skip
    assert kept(traced) == {"scale": ON_LOGITS, "bias": ON_LOGITS}
    assert ("msa", NO_SHAPE, ("conv", "conv", "conv")) in describe(traced)


def test_what_acts_on_a_product_that_is_no_attention_is_predicted():
    def apply(params, x):
        a, b = project(params, x, "ab")
        return jnp.einsum("btc,btd->btcd", a, b).reshape(-1, 5, 12) + params["bias"]

    traced = trace_function(apply, TOKENS, a=(8, 3), b=(8, 4), bias=(1, 1, 12))
    assert not kept(traced)
    assert describe(traced) == [
        ("bias", (12, 1, 1, 1), ("cse",)),
        ("conv", (3, 8, 1, 1), ("input",)),
        ("conv", (4, 8, 1, 1), ("input",)),
        ("cse", NO_SHAPE, ("conv", "conv")),
    ]


def gated_norm(params, x):
    """Mamba-2's: the norm of a product with a gate; the product before has a state."""
    b, v, z = project(params, x, "bvz")
    state = jnp.cumsum(jnp.einsum("btn,btd->btnd", b, v), axis=1).sum(2)
    return rms_norm(state * jax.nn.silu(z), params["scale"]) @ params["out"]


def norm_of_a_product(params, x):
    b, v, z = project(params, x, "bvz")
    y = jnp.einsum("btn,btd->btnd", b, v)[:, :, 0] * z
    return rms_norm(y, params["scale"]) @ params["out"]


@pytest.mark.parametrize("function", [gated_norm, norm_of_a_product])
def test_a_norm_after_a_product_of_activations_is_a_norm(function):
    sizes = {"b": (8, 3), "v": (8, 6), "z": (8, 6), "scale": (1, 1, 6), "out": (6, 2)}
    traced = trace_function(function, TOKENS, **sizes)
    assert not kept(traced)
    assert tensors(traced)["scale"] == ((6,), "scale")
    nodes = describe(traced)
    assert [node for node in nodes if node[0] == "ln"] == [("ln", (6, 1, 1, 1), ("cse",))]
    assert "msa" not in primitives(traced)


def test_a_norm_of_logits_that_become_attention_is_kept():
    def apply(params, x):
        q, k, v = project(params, x, "qkv")
        return attend(jnp.einsum("btc,bsc->bts", q, k) * params["temperature"], v)

    sizes = {"q": (8, 6), "k": (8, 6), "v": (8, 6), "temperature": (1, 1, 5)}
    assert kept(trace_function(apply, TOKENS, **sizes)) == {"temperature": ON_LOGITS}


def mixture(gate, experts):
    def apply(params, x):
        shares = gate(x @ params["router"])
        hidden = nn.relu(jnp.einsum("btc,ecd->bted", x, params["first"]))
        return experts(hidden, params["second"], shares)

    return apply


def top_two(logits):
    values, indices = lax.top_k(jax.nn.softmax(logits), 2)
    return jnp.sum(jax.nn.one_hot(indices, 3) * values[..., None], axis=-2)


GATES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid, "top two": top_two}
EXPERTS = {
    "gates last": lambda h, w, g: jnp.einsum(
        "btef,bte->btf", jnp.einsum("bted,edf->btef", h, w), g
    ),
    "all in one": lambda h, w, g: jnp.einsum("bted,edf,bte->btf", h, w, g),
}


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("gate", GATES)
def test_a_mixture_of_experts_is_no_attention(gate, experts):
    sizes = {"router": (8, 3), "first": (3, 8, 6), "second": (3, 6, 8)}
    traced = trace_function(mixture(GATES[gate], EXPERTS[experts]), TOKENS, **sizes)
    assert not kept(traced)
    assert "msa" not in primitives(traced) and primitives(traced).count("cse") == 1


def test_a_softmax_over_tokens_is_attention():
    def apply(params, x):
        logits = nn.tanh(x @ params["w"]) @ params["query"]
        return jnp.einsum("bth,btc->bhc", jax.nn.softmax(logits, axis=1), x @ params["v"])

    traced = trace_function(apply, TOKENS, w=(8, 6), query=(6, 2), v=(8, 6))
    assert not kept(traced)
    assert ("msa", NO_SHAPE, ("conv", "conv")) in describe(traced)


def halves(x):
    return jnp.split(x, 2, axis=-1)


def rotate(x):
    """Rotary positions: halves again, but added up."""
    a, b = halves(x)
    cos, sin = (
        jnp.broadcast_to(f(jnp.arange(5.0))[:, None], (1, 5, 6)) for f in (jnp.cos, jnp.sin)
    )
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


GATED = {
    "glu": nn.glu,
    "swiglu": lambda x: nn.silu(halves(x)[0]) * halves(x)[1],
    "geglu": lambda x: halves(x)[0] * nn.gelu(halves(x)[1]),
    "slices": lambda x: x[..., :6] * nn.sigmoid(x[..., 6:]),
    "interleaved": lambda x: x[..., ::2] * nn.sigmoid(x[..., 1::2]),
}
UNGATED = {
    "silu": lambda x: x * nn.sigmoid(x),
    "silu of a half": lambda x: nn.silu(halves(x)[0]),
    "square of a half": lambda x: halves(x)[1] * halves(x)[1],
    "rotary": rotate,
    "sum of halves": lambda x: halves(x)[0] + nn.sigmoid(halves(x)[1]),
}


@pytest.mark.parametrize("name", [*GATED, *UNGATED])
def test_halves_of_a_layer_that_are_multiplied_are_a_gate(name):
    function = {**GATED, **UNGATED}[name]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, use_bias=False)(function(nn.Dense(12)(x)))

    traced = trace(Net(), TOKENS)
    nodes = describe(traced)
    if name in GATED:
        assert ("cse", NO_SHAPE, ("bias",)) in nodes
        assert ("conv", (3, 6, 1, 1), ("cse",)) in nodes
    else:
        assert "cse" not in primitives(traced)
    assert not kept(traced)
