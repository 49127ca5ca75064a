"""Elementwise functions between a parameter and its use, and their inverses.

A GHN predicts what meets the data. If the network computes that as f(p) from its parameter p, such
as 1 + p or exp(p), the parameter must hold the inverse of f at what was predicted.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

_INF = np.inf
_EVERYWHERE, _POSITIVE = (-_INF, _INF), (0.0, _INF)
# Share of an open bound: arrays are float32.
_MARGIN = 1e-6
# What a GHN-2 predicts lies about here. A function that cannot give these values has no use.
_NEEDED_SCALE, _NEEDED = (0.5, 1.5), (-0.5, 0.5)


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """An elementwise function of one argument.

    Attributes:
        name: A name in the table of functions with an inverse, or any other.
        constant: Its second operand, if it has one.
    """

    name: str
    constant: float = 0.0


def _same(x, c):
    return x


# name: (function, inverse, where it is monotone)
_INVERTIBLE: dict[str, tuple[Callable, Callable, tuple[float, float]]] = {
    "add": (lambda x, c: x + c, lambda y, c: y - c, _EVERYWHERE),
    "mul": (lambda x, c: x * c, lambda y, c: y / c, _EVERYWHERE),
    "reciprocal": (lambda x, c: 1 / x, lambda y, c: 1 / y, _POSITIVE),
    "pow": (lambda x, c: x**c, lambda y, c: y ** (1 / c), _POSITIVE),
    "odd_pow": (
        lambda x, c: np.sign(x) * np.abs(x) ** c,
        lambda y, c: np.sign(y) * np.abs(y) ** (1 / c),
        _EVERYWHERE,
    ),
    "exp": (lambda x, c: np.exp(x), lambda y, c: np.log(y), _EVERYWHERE),
    "exp2": (lambda x, c: np.exp2(x), lambda y, c: np.log2(y), _EVERYWHERE),
    "expm1": (lambda x, c: np.expm1(x), lambda y, c: np.log1p(y), _EVERYWHERE),
    "log": (lambda x, c: np.log(x), lambda y, c: np.exp(y), _POSITIVE),
    "log1p": (lambda x, c: np.log1p(x), lambda y, c: np.expm1(y), (-1.0, _INF)),
    "softplus": (
        lambda x, c: np.logaddexp(x, 0),
        lambda y, c: y + np.log(-np.expm1(-y)),
        _EVERYWHERE,
    ),
    "tanh": (lambda x, c: np.tanh(x), lambda y, c: np.arctanh(y), _EVERYWHERE),
    "atanh": (lambda x, c: np.arctanh(x), lambda y, c: np.tanh(y), (-1.0, 1.0)),
    "sinh": (lambda x, c: np.sinh(x), lambda y, c: np.arcsinh(y), _EVERYWHERE),
    "asinh": (lambda x, c: np.arcsinh(x), lambda y, c: np.sinh(y), _EVERYWHERE),
    "logistic": (lambda x, c: special.expit(x), lambda y, c: special.logit(y), _EVERYWHERE),
    "erf": (lambda x, c: special.erf(x), lambda y, c: special.erfinv(y), _EVERYWHERE),
    "erf_inv": (lambda x, c: special.erfinv(x), lambda y, c: special.erf(y), (-1.0, 1.0)),
    "cbrt": (lambda x, c: np.cbrt(x), lambda y, c: y**3, _EVERYWHERE),
    "abs": (lambda x, c: np.abs(x), _same, _POSITIVE),
    # Projections: what they give, they leave as it is.
    "max": (np.maximum, _same, _EVERYWHERE),
    "min": (np.minimum, _same, _EVERYWHERE),
    "round": (lambda x, c: np.round(x), _same, _EVERYWHERE),
    "floor": (lambda x, c: np.floor(x), _same, _EVERYWHERE),
    "ceil": (lambda x, c: np.ceil(x), _same, _EVERYWHERE),
}


def is_linear(function: Function) -> bool:
    """Return whether f(a + b) = f(a) + f(b)."""
    return function.name == "mul"


def evaluate(functions: Sequence[Function], value: np.ndarray) -> np.ndarray:
    """Apply functions with an inverse, one after the other."""
    for function in functions:
        forward, _, _ = _INVERTIBLE[function.name]
        value = forward(value, function.constant)
    return value


def invert(functions: Sequence[Function], value: np.ndarray) -> np.ndarray:
    """Return what functions, one after the other, map to a value.

    Args:
        functions: Functions with an inverse.
        value: Any array. What the functions cannot give is replaced by the nearest that they can.

    Returns:
        An array in float64.
    """
    if not functions:
        return value
    value = np.asarray(value, np.float64)
    ranges = _ranges(functions)
    for function, (low, high) in reversed(list(zip(functions, ranges, strict=True))):
        _, inverse, _ = _INVERTIBLE[function.name]
        low, high = _inwards(low, 1), _inwards(high, -1)
        value = inverse(np.clip(value, low, high), function.constant)
    return value


def find_obstacle(functions: Sequence[Function], role: str) -> str | None:
    """Say why a parameter cannot be predicted through functions.

    Args:
        functions: What it passes through, in this order.
        role: The role of the tensor that the last of them gives.

    Returns:
        The reason; None if there is none.
    """
    strange = [function.name for function in functions if function.name not in _INVERTIBLE]
    if strange:
        return f"passes through {strange[0]} before use, which has no inverse"
    if not functions:
        return None
    ranges = _ranges(functions)
    low, high = _NEEDED_SCALE if role == "scale" else _NEEDED
    if len(ranges) == len(functions) and ranges[-1][0] <= low and high <= ranges[-1][1]:
        return None
    names = ", ".join(function.name for function in functions)
    return f"passes through {names} before use, which cannot give what a GHN predicts"


def _inwards(bound, sign):
    return bound + sign * _MARGIN * max(1, abs(bound)) if np.isfinite(bound) else bound


def _ranges(functions):
    """Ranges after each function; fewer if one of them is undefined on what comes before."""
    low, high = _EVERYWHERE
    ranges = []
    with np.errstate(all="ignore"):
        for function in functions:
            forward, _, (left, right) = _INVERTIBLE[function.name]
            ends = np.array([max(low, left), min(high, right)])
            if ends[0] >= ends[1]:
                break
            low, high = sorted(forward(ends, function.constant).tolist())
            if not low < high:  # NaN, too
                break
            ranges.append((low, high))
    return ranges
