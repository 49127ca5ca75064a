"""Flags that several programs share: the GHN, and the folder of a stored network.

Each program calls these functions where it defines its other flags, and lists these as its own.
"""

from absl import flags

flags.disclaim_key_flags()  # the flags belong to the calling module


def define_ghn_flag(more: str = "") -> None:
    """Define `--ghn`; `more` is appended to its help text."""
    flags.DEFINE_string(
        "ghn",
        None,
        "Work directory of training, the name of a packaged GHN (digits), or an official .pt file"
        f"{more}.",
    )


def define_deepnets_flag() -> None:
    """Define `--deepnets`, the folder from which an architecture SPLIT/INDEX is read."""
    flags.DEFINE_string("deepnets", None, "Folder with the DeepNets-1M file for SPLIT/INDEX.")
