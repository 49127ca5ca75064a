"""Check argument values.

In: a name, a value and what is allowed. Out: nothing, or a ValueError that names the argument, the
value and what was expected, with a near match if a name was misspelt.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

_LONGEST_TEXT = 100  # characters of a value in an error
_LONGEST_MESSAGE = 1000  # characters of an error
_DEEPEST = 8  # levels of a value in an error
_MOST_BITS = 1000  # of an int in an error: Python refuses to write out one of 4,300 digits


def suggest(value: object, options: Iterable[object]) -> str:
    """Return ' (did you mean ...?)' for a near match among the strings in `options`, else ''."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        return ""
    names = [option for option in options if isinstance(option, str)]
    matches = difflib.get_close_matches(value, names, n=1)
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
        raise ValueError(
            f"{owner} is {describe_value(values)}, expected a mapping with keys {', '.join(known)}"
        )
    for key in values:
        if key not in known:
            raise ValueError(
                f"{owner} has the unknown key {describe_value(key)}{suggest(key, known)},"
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
        raise ValueError(
            f"{name} is {describe_value(value)}{suggest(value, options)}, expected {expected}"
        )


def check_positive_int(name: str, value: object, most: int | None = None) -> None:
    """Raise ValueError unless the value is an int of at least 1 and at most `most`."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {describe_value(value)}, expected a positive int")
    _check_most(name, value, most)


def check_count(name: str, value: object, most: int | None = None) -> None:
    """Raise ValueError unless the value is an int of at least 0 and at most `most`."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {describe_value(value)}, expected an int of at least 0")
    _check_most(name, value, most)


def _check_most(name: str, value: int, most: int | None) -> None:
    if most is not None and value > most:
        raise ValueError(f"{name} is {describe_value(value)}, expected at most {most}")


def check_number(name: str, value: object) -> None:
    """Raise ValueError unless the value is a finite number of at least 0."""
    if not 0 <= _as_float(value) < math.inf:
        raise ValueError(
            f"{name} is {describe_value(value)}, expected a finite number of at least 0"
        )


def check_share(name: str, value: object) -> None:
    """Raise ValueError unless the value is a number in [0, 1)."""
    if not 0 <= _as_float(value) < 1:
        raise ValueError(f"{name} is {describe_value(value)}, expected a number in [0, 1)")


def _as_float(value: object) -> float:
    """Return a number as a float, infinity for a larger int, NaN for what is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


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
    # Written piece by piece: the whole text of lists that hold each other may take gigabytes.
    text = ""
    for piece in _write(value):
        text += piece
        if len(text) > 2 * _LONGEST_TEXT:
            break
    return shorten(text, _LONGEST_TEXT)


def _write(value: Any, level: int = 0) -> Iterator[str]:
    """Yield the pieces of a value's text, each of them short where the value is of plain types."""
    if isinstance(value, dict):
        opening, items, closing = "{", iter(value.items()), "}"
    elif type(value) is list:
        opening, items, closing = "[", iter(value), "]"
    elif type(value) is tuple:
        opening, items, closing = "(", iter(value), ",)" if len(value) == 1 else ")"
    elif isinstance(value, str | bytes):
        yield repr(value[: 2 * _LONGEST_TEXT])
        return
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        yield f"an int of {value.bit_length()} bits"
        return
    else:
        yield repr(value)
        return
    yield opening
    if level == _DEEPEST:
        yield "..."
        items = iter(())
    for index, item in enumerate(items):
        if index:
            yield ", "
        if isinstance(value, dict):
            key, item = item
            yield from _write(key, level + 1)
            yield ": "
        yield from _write(item, level + 1)
    yield closing


def shorten(text: object, longest: int = _LONGEST_MESSAGE) -> str:
    """Return a text, or the text of an error, in one line of bounded length."""
    line = " ".join(str(text)[: 10 * longest].split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def as_tuple(name: str, values: Any) -> tuple[Any, ...]:
    """Convert any iterable but a string to a tuple, or raise ValueError."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {describe_value(values)}, expected a sequence")
    return tuple(values)
