"""Check argument values.

In: a name, a value and what is allowed. Out: nothing, or a ValueError that names the argument, the
value and what was expected, with a near match if a name was misspelt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def suggest(value: object, options: Iterable[object]) -> str:
    """Return ' (did you mean ...?)' for a near match among the strings in `options`, else ''."""
    names = [option for option in options if isinstance(option, str)]
    matches = difflib.get_close_matches(str(value), names, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


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


def as_tuple(name: str, values: Any) -> tuple[Any, ...]:
    """Convert any iterable but a string to a tuple, or raise ValueError."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is {values!r}, expected a sequence")
    return tuple(values)
