"""Check argument values.

In: a name, a value and what is allowed. Out: nothing, or a ValueError that names the argument, the
value and what was expected, with a near match if a name was misspelt.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

_LONGEST_TEXT = 100  # characters of a value in an error


def suggest(value: object, options: Iterable[object]) -> str:
    """Return ' (did you mean ...?)' for a near match among the strings in `options`, else ''."""
    names = [option for option in options if isinstance(option, str)]
    matches = difflib.get_close_matches(str(value), names, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def is_redefinition(known: Any, new: Any) -> bool:
    """Return whether a class or function is one defined before, by code that runs once more.

    A notebook's cell may run twice, and so may a config file.
    """
    return (known.__module__, known.__qualname__) == (new.__module__, new.__qualname__)


def check_keys(
    owner: str, values: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    """Raise ValueError unless a mapping has all required keys and no others but optional ones."""
    known = required + optional
    if not isinstance(values, Mapping):
        raise ValueError(f"{owner} is {values!r}, expected a mapping with keys {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ValueError(
                f"{owner} has the unknown key {key!r}{suggest(key, known)},"
                f" expected some of {', '.join(known)}"
            )
    for key in required:
        if key not in values:
            raise ValueError(f"{owner} lacks the key {key!r}, expected {', '.join(required)}")


def check_choice(name: str, value: object, options: tuple[object, ...]) -> None:
    """Raise ValueError unless the value equals one of the options and has its type."""
    # 1 == True in Python, so types are compared too: a stem_type of True is a mistake.
    if not any(value == option and type(value) is type(option) for option in options):
        expected = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} is {value!r}{suggest(value, options)}, expected {expected}")


def check_positive_int(name: str, value: object) -> None:
    """Raise ValueError unless the value is an int of at least 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a positive int")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless the value is an int of at least 0."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r}, expected an int of at least 0")


def check_number(name: str, value: object) -> None:
    """Raise ValueError unless the value is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a finite number of at least 0")


def check_share(name: str, value: object) -> None:
    """Raise ValueError unless the value is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} is {value!r}, expected a number in [0, 1)")


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless the value is True or False."""
    if type(value) is not bool:
        raise ValueError(f"{name} is {describe_value(value)}, expected True or False")


def check_instance(name: str, value: object, kinds: Any, expected: str) -> None:
    """Raise ValueError unless the value is of one of the kinds, as `isinstance` takes them."""
    if not isinstance(value, kinds):
        raise ValueError(f"{name} is {describe_value(value)}, expected {expected}")


def check_random_key(name: str, value: object) -> None:
    """Raise ValueError unless the value is one key of `jax.random`, typed or as uint32."""
    # Imported here: processes that read images check values too, and do without JAX.
    import jax
    import numpy as np

    is_key = False
    if isinstance(value, jax.Array | np.ndarray):
        is_typed = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        is_key = value.ndim == 0 if is_typed else value.dtype == np.uint32 and value.ndim == 1
    if not is_key:
        raise ValueError(f"{name} is {describe_value(value)}, expected a key of jax.random.key")


def describe_value(value: Any) -> str:
    """A value as an error shows it: arrays by their shape, anything else in one short line."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def as_tuple(name: str, values: Any) -> tuple[Any, ...]:
    """Convert any iterable but a string to a tuple, or raise ValueError."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {values!r}, expected a sequence")
    return tuple(values)
