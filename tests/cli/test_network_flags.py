"""Keyword arguments of a network's call on a command line."""

import pytest

from ghn_jax.cli.network_flags import parse_arguments


def test_arguments_are_a_json_object():
    assert parse_arguments('{"train": true, "rate": 0.5}', is_traced=True) == {
        "train": True,
        "rate": 0.5,
    }
    assert parse_arguments("{}", is_traced=False) == {}


@pytest.mark.parametrize("text", ["train=True", "[1]", "{'train': true}", "3"])
def test_anything_else_is_an_error(text):
    with pytest.raises(ValueError, match="^--arguments is .*, expected a JSON object such as"):
        parse_arguments(text, is_traced=True)


def test_an_architecture_has_no_call_of_its_own():
    with pytest.raises(ValueError, match="^--arguments is .*, expected none for an architecture$"):
        parse_arguments('{"train": true}', is_traced=False)
