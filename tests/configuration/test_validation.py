"""Errors name the argument, the value and what was expected."""

import jax
import numpy as np
import pytest

from ghn_jax.configuration import validation


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (validation.check_positive_int, (1, 7), (0, -1, 1.0, True, "1", None)),
        (validation.check_count, (0, 7), (-1, 1.0, True, None)),
        (validation.check_number, (0, 0.5, np.float32(2)), (-1, np.inf, np.nan, True, "1", None)),
        (validation.check_share, (0, 0.5), (1, -0.1, np.nan, False, "0")),
        (validation.check_flag, (True, False), (1, 0, "yes", None)),
    ],
)
def test_values(check, good, bad):
    for value in good:
        check("size", value)
    for value in bad:
        with pytest.raises(ValueError, match="^size is .*, expected"):
            check("size", value)


def test_random_keys():
    for key in (jax.random.key(0), jax.random.PRNGKey(0), np.zeros(2, np.uint32)):
        validation.check_random_key("key", key)
    for value in (0, None, np.zeros(2), jax.random.split(jax.random.key(0), 2)):
        with pytest.raises(ValueError, match=r"^key is .*, expected a key of jax.random.key$"):
            validation.check_random_key("key", value)


def test_instances_by_hand():
    validation.check_instance("model", 3, (int, str), "an int or a str")
    with pytest.raises(ValueError) as caught:
        validation.check_instance("model", np.zeros((2, 3), np.float32), int, "an int")
    text = "model is an array of shape (2, 3) and dtype float32, expected an int"
    assert str(caught.value) == text


def test_a_shown_value_is_one_short_line():
    assert validation.describe_value("a\nb") == "'a\\nb'"
    shown = validation.describe_value({"x": list(range(1000))})
    assert shown.startswith("{'x': [0, 1, 2, ") and shown.endswith("...") and len(shown) < 110


def test_values_of_any_size_are_shown_in_one_short_line():
    held = [0]
    for _ in range(100):
        held = [held] * 10  # 10**100 zeros, were they written out
    deep = ()
    for _ in range(100_000):
        deep = (deep,)
    for value in (held, deep, "x" * 10**6, b"x" * 10**6, [10**5000], {"a": held}, 2**70000):
        shown = validation.describe_value(value)
        assert "\n" not in shown and len(shown) <= 103
    assert validation.describe_value(held).startswith("[[[[[[[[[...]")
    assert validation.describe_value(2**70000) == "an int of 70001 bits"
    assert (
        validation.describe_value({"a": (1,), "b": [2.5, None]}) == "{'a': (1,), 'b': [2.5, None]}"
    )
    assert validation.shorten("a\n  b" + "c" * 2000) == "a b" + "c" * 997 + "..."


def test_limits_are_part_of_the_error():
    validation.check_positive_int("seed", 5, most=5)
    for check in (validation.check_positive_int, validation.check_count):
        with pytest.raises(ValueError, match="^seed is 6, expected at most 5$"):
            check("seed", 6, most=5)
        with pytest.raises(ValueError, match="^seed is an int of 70001 bits, expected at most 5$"):
            check("seed", 2**70000, most=5)
    for check in (validation.check_number, validation.check_share):
        with pytest.raises(ValueError, match="^rate is an int of 70001 bits, expected a "):
            check("rate", 2**70000)
