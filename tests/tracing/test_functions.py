"""Functions between a parameter and its use: values by hand, and what has no inverse."""

import jax
import numpy as np
import pytest

from ghn_jax.tracing.functions import Function, evaluate, find_obstacle, invert
from ghn_jax.tracing.views import View

VALUE = np.array([0.25, 0.5, 1.0, 1.75])

# (functions, the same by numpy, the parameter at which they give 0.5)
CASES = {
    "one plus": ([Function("add", 1.0)], lambda p: 1 + p, -0.5),
    "quarter": ([Function("mul", 0.25)], lambda p: 0.25 * p, 2.0),
    "exp": ([Function("exp")], np.exp, -np.log(2)),
    "exp2": ([Function("exp2")], np.exp2, -1.0),
    "expm1": ([Function("expm1")], np.expm1, np.log(1.5)),
    "log": ([Function("log")], np.log, np.exp(0.5)),
    "log1p": ([Function("log1p")], np.log1p, np.exp(0.5) - 1),
    "softplus": ([Function("softplus")], lambda p: np.log(1 + np.exp(p)), np.log(np.exp(0.5) - 1)),
    "softplus in steps": (
        [Function("exp"), Function("add", 1.0), Function("log")],
        lambda p: np.log(1 + np.exp(p)),
        np.log(np.exp(0.5) - 1),
    ),
    "reciprocal": ([Function("reciprocal")], lambda p: 1 / p, 2.0),
    "square": ([Function("pow", 2.0)], np.square, np.sqrt(0.5)),
    "reciprocal root": ([Function("pow", -0.5)], lambda p: 1 / np.sqrt(p), 4.0),
    "cube": ([Function("odd_pow", 3.0)], lambda p: p**3, np.cbrt(0.5)),
    "cube root": ([Function("cbrt")], np.cbrt, 0.125),
    "one minus tanh": (
        [Function("tanh"), Function("mul", -1.0), Function("add", 1.0)],
        lambda p: 1 - np.tanh(p),
        np.arctanh(0.5),
    ),
    "twice logistic": (
        [Function("logistic"), Function("mul", 2.0)],
        lambda p: 2 / (1 + np.exp(-p)),
        -np.log(3),
    ),
    "sinh": ([Function("sinh")], np.sinh, np.arcsinh(0.5)),
    "asinh": ([Function("asinh")], np.arcsinh, np.sinh(0.5)),
    "abs": ([Function("abs")], np.abs, 0.5),
}


@pytest.mark.parametrize("name", CASES)
def test_the_inverse_gives_the_value_back(name):
    functions, reference, at_half = CASES[name]
    assert find_obstacle(functions, "scale") is None
    inverse = invert(functions, VALUE)
    np.testing.assert_allclose(reference(inverse), VALUE, rtol=1e-6)
    np.testing.assert_allclose(inverse[1], at_half, rtol=1e-6)
    np.testing.assert_allclose(evaluate(functions, inverse), VALUE, rtol=1e-6)


@pytest.mark.parametrize("name", ["erf", "erf_inv", "atanh"])
def test_functions_of_bounded_domain_or_range(name):
    value = np.array([-0.4, 0.0, 0.4])
    reference = {"erf": jax.scipy.special.erf, "erf_inv": jax.scipy.special.erfinv}
    inverse = invert([Function(name)], value)
    expected = reference.get(name, np.arctanh)(inverse.astype(np.float32))
    np.testing.assert_allclose(expected, value, atol=1e-6)


def test_projections_leave_what_they_give():
    steps = [Function("mul", 8.0), Function("round"), Function("mul", 0.125)]
    value = np.array([0.25, -0.375, 0.3])
    np.testing.assert_allclose(evaluate(steps, invert(steps, value)), [0.25, -0.375, 0.25])
    bounds = [Function("max", -0.6), Function("min", 0.6)]
    np.testing.assert_allclose(invert(bounds, np.array([0.3, 2.0])), [0.3, 0.6], atol=1e-5)


@pytest.mark.parametrize(
    ("functions", "role", "reason"),
    [
        (["sin"], "scale", "passes through sin before use, which has no inverse"),
        (["logistic"], "scale", "passes through logistic before use, which cannot give what"),
        (["tanh"], "scale", "passes through tanh before use, which cannot give what"),
        (["exp"], "kernel", "passes through exp before use, which cannot give what"),
        (["abs", "log"], "bias", None),
        (["tanh"], "kernel", None),
        (["exp"], "scale", None),
    ],
)
def test_what_cannot_give_what_a_ghn_predicts(functions, role, reason):
    found = find_obstacle([Function(name) for name in functions], role)
    assert (found is None) if reason is None else found.startswith(reason)


def test_ranges_follow_each_other():
    above_one = [Function("exp"), Function("add", 1.0)]
    assert find_obstacle(above_one, "scale").startswith("passes through exp, add before use")
    nowhere = [Function("exp"), Function("mul", -1.0), Function("log")]
    assert find_obstacle(nowhere, "scale").startswith("passes through exp, mul, log before use")


def test_a_view_writes_through_functions_and_rearrangements():
    view = View(0, (2, 3)).through(Function("add", 1.0)).transpose((1, 0))
    view = view.through(Function("exp")).slice((slice(1, 3), slice(0, 2)))
    array = np.zeros((2, 3))
    value = np.array([[0.5, 1.0], [2.0, 4.0]])
    view.restore(array, value)
    np.testing.assert_allclose(array, [[0, *(np.log([0.5, 2]) - 1)], [0, *(np.log([1, 4]) - 1)]])
    np.testing.assert_allclose(view.read(array), value)
    assert view.region == View(0, (2, 3)).transpose((1, 0)).slice(view.steps[-1][2]).region
