"""Flags that several programs have: which GHN, where a network of a file lies, how one is called.

Each program calls these functions where it defines its other flags, and lists them as its own.
"""

import json
from typing import Any

from absl import flags

flags.disclaim_key_flags()  # they are those of the module that calls


def define_ghn_flag(more: str = "") -> None:
    """Define `--ghn`; `more` ends its help text."""
    flags.DEFINE_string(
        "ghn",
        None,
        "Work directory of training, the name of a packaged GHN (digits), or an official .pt file"
        f"{more}.",
    )


def define_arguments_flag() -> None:
    """Define `--arguments`, which `parse_arguments` reads."""
    flags.DEFINE_string(
        "arguments",
        "{}",
        "Keyword arguments, as JSON, of the call of a network that a factory or a name makes.",
    )


def parse_arguments(text: str, is_traced: bool) -> dict[str, Any]:
    """Read `--arguments`.

    Args:
        text: The flag.
        is_traced: Whether the network has a call of its own, which architectures have not.

    Returns:
        Keyword arguments by name.

    Raises:
        ValueError: If the text is not a JSON object, or there is nothing to call with it.
    """
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(
            f"--arguments is {text!r}, expected a JSON object such as '{{\"train\": true}}'"
        )
    if arguments and not is_traced:
        raise ValueError(f"--arguments is {text!r}, expected none for an architecture")
    return arguments


def define_deepnets_flag() -> None:
    """Define `--deepnets`, the folder that an architecture SPLIT/INDEX is read from."""
    flags.DEFINE_string("deepnets", None, "Folder of the DeepNets-1M file of SPLIT/INDEX.")
