"""Parameters that no gradient reaches: the same verdict as that of jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ghn_jax.tracing.gradients import COMPARED, FIXED, find_fixed


def fixed(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    jaxpr = jax.make_jaxpr(function)(*arrays)
    return find_fixed(jaxpr, jaxpr.jaxpr.invars, len(jaxpr.jaxpr.outvars))


@jax.custom_vjp
def quantize(w):
    return jnp.round(w)


quantize.defvjp(lambda w: (jnp.round(w), None), lambda _, g: (g,))


def scanned(a, b, c):
    def step(carry, row):
        first, second = carry
        # What b starts reaches the first carry only in the second iteration.
        return (first + second * row, second), lax.stop_gradient(row)

    (first, _), rows = lax.scan(step, (a, b), c)
    return first + rows.sum()


FREE = {
    "straight through": lambda a, b: a + lax.stop_gradient(jnp.round(a) - a) + b,
    "custom": lambda a, b: quantize(a) * b,
    "one of two paths": lambda a, b: lax.stop_gradient(a) * jax.nn.relu(a) + b,
    "loop": lambda a, b: lax.fori_loop(0, 3, lambda _, x: x * b, a),
    "while": lambda a, b: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + b, a),
    "branches": lambda a, b: lax.cond(True, lambda: a, lambda: a * b),
    "remat": lambda a, b: jax.checkpoint(lambda x: jnp.sin(x) * b)(a),
    "classes": lambda a, b: jnp.argmax(a * b),
}


@pytest.mark.parametrize("name", FREE)
def test_what_a_gradient_reaches(name):
    assert fixed(FREE[name], (3,), (3,)) == {}


STOPPED = {  # of a, b, c: which are fixed
    "parameter": (lambda a, b, c: (a - lax.stop_gradient(b)) * c, {1: FIXED}),
    "layers": (lambda a, b, c: lax.stop_gradient(jnp.tanh(a * b)) * c, {0: FIXED, 1: FIXED}),
    "comparison": (lambda a, b, c: jnp.where(a > b, a, 0) * c, {1: COMPARED}),
    "index": (lambda a, b, c: a[jnp.argmax(b)] * c, {1: COMPARED}),
    "rounding": (lambda a, b, c: a * jnp.sign(b) + jnp.floor(c), {1: COMPARED, 2: COMPARED}),
    "integers": (lambda a, b, c: a * b.astype(int).astype(float) + c, {1: COMPARED}),
    "both": (lambda a, b, c: a * jnp.sign(lax.stop_gradient(b)) + c, {1: FIXED}),
    "call": (lambda a, b, c: jax.jit(lambda x, y: x + lax.stop_gradient(y))(a, b) * c, {1: FIXED}),
    "branch": (lambda a, b, c: lax.cond(b.sum() > 0, lambda: a * c, lambda: c), {1: COMPARED}),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_none_reaches(name):
    function, expected = STOPPED[name]
    assert fixed(function, (3,), (3,), (3,)) == expected
    arrays = [np.array(x, np.float32) for x in ([0.3, 1.2, 2.0], [0.5, 0.7, 1.1], [2.0, 3.0, 5.0])]
    gradients = jax.grad(lambda *x: function(*x).sum(), argnums=(0, 1, 2))(*arrays)
    assert {index for index, x in enumerate(gradients) if not x.any()} == set(expected)


def counted(a, b, c):
    """The condition's own `b`, and a count of `c`, decide how often `a` is added."""

    def body(state):
        total, count = state
        return total + a, count + c.sum()

    return lax.while_loop(lambda state: state[1] < b.sum(), body, (a, 0.0))[0]


def changed(a, b, c):
    """`b` decides through the state that ends the loop, `c` in the loop's first state only."""
    body = lambda state: (state[0] * a, state[1] + b.sum())  # noqa: E731
    return lax.while_loop(lambda state: state[1] < 9.0, body, (a, c.sum()))[0]


def used_twice(a, b, c):
    body = lambda state: (state[0] + b * a, state[1] + 1.0)  # noqa: E731
    total, count = lax.while_loop(lambda state: state[1] < b.sum(), body, (c, 0.0))
    return total * count


WHILE = {
    "constants of the condition": (counted, {1: COMPARED, 2: COMPARED}),
    "the state": (changed, {1: COMPARED, 2: COMPARED}),
    "a value, too": (used_twice, {}),
    "stopped": (lambda a, b, c: counted(a, lax.stop_gradient(b), c), {1: FIXED, 2: COMPARED}),
}


@pytest.mark.parametrize("name", WHILE)
def test_what_only_sets_how_often_a_loop_runs(name):
    function, expected = WHILE[name]
    assert fixed(function, (3,), (3,), (3,)) == expected
    x = [np.array(x, np.float32) for x in ([0.3, 1.2, 2.0], [0.5, 0.7, 1.1], [0.2, 0.3, 0.4])]
    derivatives = jax.jacfwd(lambda *x: function(*x).sum(), argnums=(0, 1, 2))(*x)
    assert {index for index, d in enumerate(derivatives) if not d.any()} == set(expected)


def test_scans_are_followed_until_nothing_changes():
    assert fixed(scanned, (3,), (3,), (4, 3)) == {}
    assert fixed(lambda a, b, c: scanned(a, lax.stop_gradient(b), c), (3,), (3,), (4, 3)) == {
        1: FIXED
    }


def test_what_is_not_used_is_not_fixed():
    assert fixed(lambda a, b: a * 2, (3,), (3,)) == {}
    assert fixed(lambda a, b: lax.stop_gradient(a * b), (3,), (3,)) == {}  # all alike
