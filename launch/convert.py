"""Convert a checkpoint: an official `.pt` file to an Orbax folder, or back.

    python launch/convert.py --ghn ghn2_cifar10.pt --out ghn2_cifar10
    python launch/convert.py --ghn ghn2_cifar10 --out again.pt

The folder is a run like those of training. The file is read by the original's `GHN.load`. What
--ghn names decides the direction; the numbers stay the same, bit for bit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `launch` itself, from anywhere

from absl import app, flags  # noqa: E402

from ghn_jax.interop.checkpoint_conversion import (  # noqa: E402
    convert_to_orbax,
    convert_to_torch,
)
from launch.command_line import errors_in_one_line, parse_flags  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "ghn", None, "Official .pt file, or a work directory of training, or a packaged GHN: digits."
)
flags.DEFINE_string("out", None, "New folder for an official file, new .pt file for anything else.")
flags.mark_flags_as_required(["ghn", "out"])


def main(argv: list[str]) -> None:
    """Convert what the flags name."""
    del argv  # nothing but the program's name
    with errors_in_one_line():
        convert()


def convert() -> None:
    """As `main`, with errors raised."""
    is_official = Path(FLAGS.ghn).suffix == ".pt" or Path(FLAGS.ghn).is_file()
    if is_official == (Path(FLAGS.out).suffix == ".pt"):
        wanted = "a folder" if is_official else "a .pt file"
        raise ValueError(f"--out is {FLAGS.out!r}, expected {wanted} for --ghn {FLAGS.ghn}")
    (convert_to_orbax if is_official else convert_to_torch)(FLAGS.ghn, FLAGS.out)
    print(f"wrote {FLAGS.out}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
