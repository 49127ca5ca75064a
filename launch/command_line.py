"""What the programs have in common: flags parsed by absl, mistakes told in one line.

In: the command line. Out: parsed flags, or one line on the standard error and an exit status: 2 for
a mistake on the command line or in a config, 1 for a failure later on.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import flags
from absl import logging as absl_logging

_HELP = ("--help", "-help", "--helpfull", "-helpfull", "--helpshort", "-helpshort", "-h")


def parse_flags(
    argv: Sequence[str],
    check: Callable[[Sequence[str]], None] = lambda arguments: None,
    help_text: Callable[[], str] | None = None,
) -> list[str]:
    """Parse with absl, for `app.run(main, flags_parser=parse_flags)`.

    Args:
        argv: the command line, the program's name first.
        check: called with the arguments before they are parsed; raises ValueError.
        help_text: what `--help` prints below the program's docstring; None is its flags.

    Returns:
        What is left of the command line: the program's name.
    """
    if any(argument in _HELP for argument in argv[1:]):
        document = sys.modules["__main__"].__doc__ or ""
        print(f"{document.strip()}\n\nflags:\n{help_text() if help_text else _flags_help()}")
        sys.exit(0)
    try:
        check(argv[1:])
        left = flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        fail(last_line(error))
    if len(left) > 1:
        fail(f"unexpected argument {left[1]!r}, expected only flags (--name=value)")
    if flags.FLAGS["verbosity"].using_default_value:
        # absl would raise it to INFO, at which Orbax writes a hundred lines for each checkpoint.
        # What tfds warns of through absl's own logger, our error tells again.
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.getLogger("absl").setLevel(logging.ERROR)
        logging.getLogger("ghn_jax").setLevel(logging.INFO)
    return left  # type: ignore[no-any-return]


@contextlib.contextmanager
def errors_in_one_line(*more: type[Exception]) -> Iterator[None]:
    """Turn errors whose text says what to do into that text; `--verbosity=1` shows the traceback.

    Args:
        more: errors besides ValueError and OSError.
    """
    shown: tuple[type[Exception], ...] = (ValueError, OSError, *more)
    try:
        yield
    except shown as error:
        absl_logging.debug("traceback", exc_info=True)
        fail(" ".join(str(error).split()), status=1)


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line on the standard error and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _flags_help() -> str:
    # Its first line names the module.
    return str(flags.FLAGS.main_module_help()).lstrip().partition("\n")[2]


def last_line(error: Exception) -> str:
    """Return the last line of an error's text: of ml_collections' lines the one that says it."""
    lines = str(error.args[0] if error.args else error).strip().splitlines()
    return lines[-1] if lines else "no message"
