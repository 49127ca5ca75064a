"""`ghn-jax PROGRAM FLAGS`: every program of `launch/`, wherever the package is installed."""

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ghn_jax.training.interruption import exit_on_signals

PROGRAMS = (
    "train",
    "evaluate",
    "predict",
    "draw",
    "finetune",
    "train-network",
    "diagnose",
    "generate",
    "convert",
    "warmup",
)
# Programs that go on where they were stopped; a signal ends the others as usual.
_RESUMABLE = ("train", "evaluate", "finetune", "train-network")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program that the first argument names, and exit.

    Args:
        argv: The command line, starting with `ghn-jax`; None means the process's.
    """
    command, *arguments = sys.argv if argv is None else argv
    if not arguments or arguments[0] in ("-h", "-help", "--help", "help"):
        print(_overview())
        sys.exit(0 if arguments else 2)
    name = arguments[0]
    if name == "--version":
        from ghn_jax import __version__

        print(f"ghn_jax {__version__}")
        sys.exit(0)
    if name not in PROGRAMS:
        near = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        print(f"error: program is {name!r}{hint}, expected {', '.join(PROGRAMS)}", file=sys.stderr)
        sys.exit(2)
    launch(name, [f"{command} {name}", *arguments[1:]])


def launch(name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Import a program, run it, and exit.

    Args:
        name: One of `PROGRAMS`.
        argv: The command line, starting with the program's name; None means the process's.
    """
    if name in _RESUMABLE:
        exit_on_signals()  # before the import, which takes seconds
    try:
        # Only this program is imported, since each defines flags of its own.
        program = importlib.import_module(f"ghn_jax.cli.{_module_name(name)}")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(program.run(argv))


def _module_name(program: str) -> str:
    return program.replace("-", "_")


def _overview() -> str:
    lines = ["ghn-jax PROGRAM FLAGS; ghn-jax PROGRAM --help lists the flags.", ""]
    width = max(map(len, PROGRAMS))
    for name in PROGRAMS:
        # Read the source, since importing it would take seconds.
        source = (Path(__file__).parent / f"{_module_name(name)}.py").read_text("utf-8")
        first_line = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {name:<{width}}  {first_line}")
    return "\n".join(lines)
