"""Convert a checkpoint: an official `.pt` file to an Orbax folder, or back.

    ghn-jax convert --ghn ghn2_cifar10.pt --out ghn2_cifar10
    ghn-jax convert --ghn ghn2_cifar10 --out again.pt

The folder is a run like those of training; the original's `GHN.load` reads the file. --ghn decides
the direction, and the numbers stay the same bit for bit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags

from ghn_jax.cli.command_line import run_program
from ghn_jax.interop.checkpoint_conversion import (
    convert_to_orbax,
    convert_to_torch,
)

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "ghn", None, "Official .pt file, work directory of training, or packaged GHN (digits)."
)
flags.DEFINE_string("out", None, "New folder if --ghn is an official file, otherwise new .pt file.")
flags.mark_flags_as_required(["ghn", "out"])


def main() -> None:
    """Convert the checkpoint that the flags name."""
    is_official = Path(FLAGS.ghn).suffix == ".pt" or Path(FLAGS.ghn).is_file()
    if is_official == (Path(FLAGS.out).suffix == ".pt"):
        wanted = "a folder" if is_official else "a .pt file"
        raise ValueError(f"--out is {FLAGS.out!r}, expected {wanted} for --ghn {FLAGS.ghn}")
    (convert_to_orbax if is_official else convert_to_torch)(FLAGS.ghn, FLAGS.out)
    print(f"wrote {FLAGS.out}")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    run_program(main, argv)
