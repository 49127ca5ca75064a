"""Flags that several programs have: which GHN, and where a network of a file lies.

Each program calls these functions where it defines its other flags, and lists them as its own.
"""

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


def define_deepnets_flag() -> None:
    """Define `--deepnets`, the folder that an architecture SPLIT/INDEX is read from."""
    flags.DEFINE_string("deepnets", None, "Folder of the DeepNets-1M file of SPLIT/INDEX.")
