"""What depends on the images is data, whatever primitives it passes: decided by the jaxpr."""

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_graphs import describe, kept, tensors, trace_function

from ghn_jax.tracing import Constant, fill_variables, trace
from ghn_jax.tracing.dependence import find_dependence
from ghn_jax.tracing.registry import RULES

IDS = jax.ShapeDtypeStruct((4, 7), jnp.int32)
VECTORS = jax.ShapeDtypeStruct((4, 8), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((4, 5, 8), jnp.float32)
NO_SHAPE = (0, 0, 0, 0)


def labels_of(function, *arguments):
    jaxpr = jax.make_jaxpr(function)(*arguments)
    inputs = [frozenset({index}) for index in range(len(arguments))]
    return [set(found) for found in find_dependence(jaxpr, inputs)]


def test_labels_pass_through_calls_loops_and_branches():
    x = jnp.ones(3)

    def loop(a, b, c, d):
        def body(carry, row):
            first, second = carry
            return (first + a, second * first), (second, row)

        (first, second), (old, rows) = lax.scan(body, (b, c), jnp.stack([d, d]))
        return first, second, old, rows

    # `second` needs `first` of the iteration before, which has added `a` by then.
    assert labels_of(loop, x, x, x, x) == [{0, 1}, {0, 1, 2}, {0, 1, 2}, {3}]
    branch = labels_of(lambda i, a, b: lax.cond(i, lambda a, b: a, lambda a, b: b, a, b), 1, x, x)
    assert branch == [{0, 1, 2}]
    call = labels_of(jax.jit(lambda a, b: (b, jax.checkpoint(jnp.sin)(a), 2.0)), x, x)
    assert call == [{1}, {0}, set()]

    def count(a, b):
        return lax.while_loop(lambda c: c[0] < a, lambda c: (c[0] + 1, c[1] * 2), (0, b))

    assert labels_of(count, 3, 4) == [{0}, {0, 1}]


def test_one_hot_vectors_are_data():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(10)(jax.nn.one_hot(tokens, 50).mean(1))

    traced = trace(Net(), IDS)
    assert describe(traced) == [
        ("bias", (10, 1, 1, 1), ("conv",)),
        ("conv", (10, 50, 1, 1), ("glob_avg",)),
        ("glob_avg", NO_SHAPE, ("input",)),
    ]
    assert not kept(traced)


COMPARISONS = {
    "gt": lambda x: jnp.astype(x > 0, jnp.float32),
    "select": lambda x: jnp.where(x > 0, 1.0, -1.0),
    "sign": jnp.sign,
    "argmax": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), 8),
    "and": lambda x: jnp.astype((x > 0) & (x < 1), jnp.float32),
    "searchsorted": lambda x: jnp.astype(jnp.searchsorted(jnp.arange(3.0), x), jnp.float32),
    "top_k": lambda x: lax.top_k(x, 8)[0],
    "sort": lambda x: jnp.sort(x, axis=-1),
    "clip": lambda x: lax.clamp(-1.0, x, 1.0),
    "bounded": lambda x: lax.clamp(x, jnp.zeros_like(x), x + 1),
    "table": lambda x: jnp.linspace(0, 1, 9)[jnp.astype(x, jnp.int32)],
    "while": lambda x: lax.while_loop(lambda c: c[1] < x.sum(), lambda c: (c[0] + 1, c[1] + 1.0),
                                      (jnp.zeros_like(x), 0.0))[0],
    "cond": lambda x: lax.cond(x.sum() > 0, jnp.ones_like, jnp.zeros_like, x),
}  # fmt: skip
HAVE_GRADIENTS = ("top_k", "sort", "clip", "bounded")
NO_GRADIENT = "only enters comparisons or rounding, which have no gradient"


@pytest.mark.parametrize("name", COMPARISONS)
def test_what_is_computed_from_data_is_data(name):
    def apply(params, x):
        return COMPARISONS[name](x @ params["a"]) @ params["b"]

    traced = trace_function(apply, VECTORS, a=(8, 8), b=(8, 3))
    assert kept(traced) == ({} if name in HAVE_GRADIENTS else {"a": NO_GRADIENT})
    convs = [node for node in describe(traced) if node[0] == "conv"]
    assert [shape for _, shape, _ in convs] == [(3, 8, 1, 1), (8, 8, 1, 1)]


def test_a_rule_that_loses_data_does_not_lose_the_dependence(monkeypatch):
    monkeypatch.setitem(RULES, "tan", lambda builder, eqn, inputs: Constant())
    traced = trace_function(lambda p, x: jnp.tan(x @ p["a"]) @ p["b"], VECTORS, a=(8, 8), b=(8, 3))
    assert not kept(traced)


def test_masks_of_the_data_themselves_are_no_node():
    def apply(params, tokens):
        mask = tokens != 0
        x = params["table"][tokens]
        logits = jnp.einsum("btc,bsc->bts", x, x)
        logits = jnp.where(mask[:, None], logits, -1e9)
        x = jnp.einsum("bts,bsc->btc", jax.nn.softmax(logits), x)
        weights = jnp.astype(mask, jnp.float32)
        return jnp.einsum("bt,btc->bc", weights, x) @ params["w"]

    traced = trace_function(apply, IDS, table=(50, 8), w=(8, 3))
    assert describe(traced) == [
        ("conv", (3, 8, 1, 1), ("msa",)),
        ("conv", (8, 50, 1, 1), ("input",)),
        ("msa", NO_SHAPE, ("conv",)),
    ]


def test_a_mask_of_a_branch_of_its_own_is_a_gate():
    def apply(params, x):
        mask = (x @ params["router"]) > 0
        return jnp.where(mask, x @ params["w"], 0.0)

    traced = trace_function(apply, VECTORS, router=(8, 6), w=(8, 6))
    assert kept(traced) == {"router": NO_GRADIENT}
    assert ("cse", NO_SHAPE, ("conv", "conv")) in describe(traced)


def vmapped_twice(table, tokens):
    return jax.vmap(jax.vmap(lambda token: table[token]))(tokens)


LOOKUPS = {
    "index": (lambda table, tokens: table[tokens], (50, 8)),
    "vmap": (lambda table, tokens: jax.vmap(lambda row: table[row])(tokens), (50, 8)),
    "vmap twice": (vmapped_twice, (50, 8)),
    "take": (lambda table, tokens: jnp.take(table, tokens, axis=0), (50, 8)),
    "columns": (lambda table, tokens: jnp.moveaxis(jnp.take(table, tokens, axis=1), 0, 2), (8, 50)),
    "dynamic slice": (
        lambda table, tokens: jax.vmap(
            jax.vmap(lambda token: lax.dynamic_slice(table, (token, 0), (1, 8))[0])
        )(tokens),
        (50, 8),
    ),
    "pairs": (lambda table, tokens: table[tokens, tokens], (5, 10, 8)),
    "clip": (lambda table, tokens: jnp.take(table, tokens, axis=0, mode="clip"), (50, 8)),
    "fill": (lambda table, tokens: jnp.take(table, tokens, axis=0, mode="fill"), (50, 8)),
    "heads": (lambda table, tokens: (table[tokens] + 1.0).reshape(-1, 7, 8), (50, 2, 4)),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups_by_data_are_embeddings(name):
    look_up, shape = LOOKUPS[name]

    def apply(params, tokens):
        return look_up(params["table"], tokens) @ params["w"]

    traced = trace_function(apply, IDS, table=shape, w=(8, 3))
    assert describe(traced) == [
        ("conv", (3, 8, 1, 1), ("conv",)),
        ("conv", (8, 50, 1, 1), ("input",)),
    ]
    assert tensors(traced) == {"table": ((50, 8), "embedding"), "w": ((8, 3), "kernel")}
    rows = np.arange(400.0, dtype=np.float32).reshape(50, 8)
    filled = fill_variables(traced, [rows if t.path[0] == "table" else np.zeros(t.shape)
                                     for t in traced.graph.tensors])["table"]  # fmt: skip
    expected = rows.T if name == "columns" else rows.reshape(shape)
    np.testing.assert_array_equal(filled, expected)


def test_equinox_embeddings():
    first, second = jax.random.split(jax.random.key(0))

    class Net(equinox.Module):
        table: equinox.nn.Embedding
        linear: equinox.nn.Linear

        def __call__(self, tokens):
            return self.linear(jax.vmap(self.table)(tokens).mean(0))

    network = Net(equinox.nn.Embedding(50, 32, key=first), equinox.nn.Linear(32, 10, key=second))
    traced = trace(network, IDS)
    assert ("conv", (32, 50, 1, 1), ("input",)) in describe(traced)
    assert not kept(traced)


def test_positions_looked_up_one_by_one():
    def apply(params, x):
        return x + jax.vmap(lambda i: params["position"][i])(jnp.arange(5))[None]

    traced = trace_function(apply, TOKENS, position=(5, 8))
    assert ("pos_enc", (1, 8, 2, 2), ()) in describe(traced)
    assert not kept(traced)


def test_a_lookup_that_is_no_embedding_says_so():
    def apply(params, tokens):
        windows = jax.vmap(lambda row: lax.dynamic_slice(params["table"], (row[0], 0), (3, 8)))
        return windows(tokens) @ params["w"]

    traced = trace_function(apply, IDS, table=(50, 8), w=(8, 3))
    assert describe(traced) == [("conv", (3, 8, 1, 1), ("input",))]
    assert kept(traced) == {"table": "is looked up in a way that is no embedding of rows"}


def test_data_looked_up_by_a_branch_of_their_own():
    def apply(params, x):
        order = jnp.argsort((x @ params["router"])[..., 0], axis=1)
        return jnp.take_along_axis(x, order[..., None], axis=1)[:, :2] @ params["w"]

    traced = trace_function(apply, TOKENS, router=(8, 1), w=(8, 3))
    assert kept(traced) == {"router": NO_GRADIENT}
    assert ("cse", NO_SHAPE, ("conv", "input")) in describe(traced)


def recur(body, num_states):
    def apply(params, x):
        zeros = jnp.zeros((x.shape[0], 6))
        start = zeros if num_states == 1 else (zeros,) * num_states
        _, emitted = lax.scan(lambda c, row: body(params, c, row), start, jnp.swapaxes(x, 0, 1))
        return emitted[-1] @ params["out"]

    return apply


def test_a_scan_that_emits_its_old_carry():
    def body(params, state, row):
        return jnp.tanh(row @ params["w"] + state @ params["u"]), state

    traced = trace_function(recur(body, 1), TOKENS, w=(8, 6), u=(6, 6), out=(6, 3))
    assert describe(traced) == [
        ("conv", (3, 6, 1, 1), ("sum",)),
        ("conv", (6, 6, 1, 1), ("input",)),
        ("conv", (6, 8, 1, 1), ("input",)),
        ("sum", NO_SHAPE, ("conv", "conv")),
    ]
    assert not kept(traced)


def test_states_that_enter_one_another_an_iteration_later():
    def body(params, states, row):
        first, second, third = states
        return (row @ params["a"], first @ params["b"], second @ params["c"]), third

    sizes = {"a": (8, 6), "b": (6, 6), "c": (6, 6), "out": (6, 3)}
    traced = trace_function(recur(body, 3), TOKENS, **sizes)
    assert not kept(traced)
    assert describe(traced) == [
        ("conv", (3, 6, 1, 1), ("conv",)),
        ("conv", (6, 6, 1, 1), ("conv",)),
        ("conv", (6, 6, 1, 1), ("conv",)),
        ("conv", (6, 8, 1, 1), ("input",)),
    ]


def test_an_output_of_the_old_state():
    def body(params, state, row):
        return row @ params["w"] + state @ params["u"], state @ params["emit"]

    sizes = {"w": (8, 6), "u": (6, 6), "emit": (6, 6), "out": (6, 3)}
    traced = trace_function(recur(body, 1), TOKENS, **sizes)
    assert not kept(traced)
    assert ("conv", (6, 6, 1, 1), ("sum",)) in describe(traced)
    assert len([node for node in describe(traced) if node[0] == "conv"]) == 4


def test_a_counter_beside_the_data_is_no_data():
    def apply(params, x):
        def body(carry):
            step, x = carry
            return step + 1, x @ lax.dynamic_index_in_dim(params["w"], step, keepdims=False)

        return lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1]

    traced = trace_function(apply, VECTORS, w=(3, 8, 8))
    assert kept(traced) == {"w": "is sliced at an index that the network computes"}


def test_that_the_output_depends_on_a_parameter_is_decided_by_the_jaxpr(monkeypatch):
    # Forgets its second input.
    monkeypatch.setitem(RULES, "atan2", lambda builder, eqn, inputs: inputs[0])

    def apply(params, x):
        jnp.sum(params["unused"])
        return jnp.arctan2(x @ params["w"], params["lost"])

    traced = trace_function(apply, VECTORS, w=(8, 3), lost=(1, 3), unused=(3,))
    assert kept(traced) == {
        "lost": "takes part in a way that no rule follows",
        "unused": "the output does not depend on it",
    }
