"""Flags that several programs share: the GHN, a stored network's folder, a network's arguments.

Each program calls these functions where it defines its other flags, and lists these as its own.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from ghn_jax.cli.command_line import last_line
from ghn_jax.configuration.validation import describe_value

flags.disclaim_key_flags()  # the flags belong to the calling module


def define_ghn_flag(more: str = "") -> None:
    """Define `--ghn`, with `more` appended to its help text, and `--import` for what it needs."""
    flags.DEFINE_string(
        "ghn",
        None,
        "Work directory of training, the name of a packaged GHN (digits), or an official .pt file"
        f"{more}.",
    )
    define_import_flag()


def define_import_flag(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Define `--import`, whose modules are imported when the flags are parsed."""
    flags.DEFINE_list(
        "import",
        [],
        "Modules, possibly in the current folder, that register your own message passing, decoder,"
        " task or data set with which the GHN was trained.",
        flag_values=flag_values,
    )
    flags.register_validator("import", _import_modules, flag_values=flag_values)


def _import_modules(names: Sequence[str]) -> bool:
    """Import the modules that the flag names."""
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # the module is the user's code
            reason = f"{type(error).__name__}: {last_line(error)}"
            raise flags.ValidationError(f"cannot import {name!r}: {reason}") from error
    return True


def define_arguments_flag() -> None:
    """Define `--arguments`, which `parse_arguments` reads."""
    flags.DEFINE_string(
        "arguments",
        "{}",
        "Keyword arguments, as JSON, for the call of a network made by a factory or a name.",
    )


def parse_arguments(text: str, is_traced: bool) -> dict[str, Any]:
    """Read `--arguments`.

    Args:
        text: The flag's value.
        is_traced: Whether the network has a call of its own, which architectures do not.

    Returns:
        Keyword arguments by name.

    Raises:
        ValueError: If the text is not a JSON object, or the network cannot be called with it.
    """
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(
            f"--arguments is {describe_value(text)}, expected a JSON object such as"
            f" '{{\"train\": true}}'"
        )
    if arguments and not is_traced:
        raise ValueError(
            f"--arguments is {describe_value(text)}, expected none for an architecture"
        )
    return arguments


def define_deepnets_flag() -> None:
    """Define `--deepnets`, the folder from which an architecture SPLIT/INDEX is read."""
    flags.DEFINE_string("deepnets", None, "Folder with the DeepNets-1M file for SPLIT/INDEX.")
