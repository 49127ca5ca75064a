"""What the programs have in common: flags parsed by absl, mistakes told in one line.

In: the command line. Out: parsed flags, or one line on the standard error and an exit status: 2 for
a mistake on the command line or in a config, 1 for a failure later on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from ghn_jax.extras import MissingExtraError

_HELP = ("--help", "-help", "--helpfull", "-helpfull", "--helpshort", "-helpshort", "-h")


def run_program(
    main: Callable[[], None], argv: Sequence[str] | None = None, *errors: type[Exception]
) -> NoReturn:
    """Run a program whose flags are defined in the module of its main function, and exit.

    Args:
        main: what the program does once its flags are parsed.
        argv: the command line, the program's name first; None is the process's.
        errors: what `main` raises, besides ValueError and OSError, with a text for its user.
    """

    def call_main(left: Sequence[str]) -> None:
        del left  # nothing but the program's name
        with errors_in_one_line(*errors):
            main()

    app.run(
        call_main,
        None if argv is None else list(argv),
        flags_parser=functools.partial(parse_flags, main.__module__),
    )


def parse_flags(
    module: str,
    argv: Sequence[str],
    check: Callable[[Sequence[str]], None] = lambda arguments: None,
    help_text: str | None = None,
) -> list[str]:
    """Parse with absl, as the `flags_parser` of `app.run`.

    Args:
        module: name of the module that defines the program's flags; its docstring is what `--help`
            begins with.
        argv: the command line, the program's name first.
        check: called with the arguments before they are parsed; raises ValueError.
        help_text: what `--help` prints below that docstring; None is the module's flags.

    Returns:
        What is left of the command line: the program's name.
    """
    if any(argument in _HELP for argument in argv[1:]):
        document = sys.modules[module].__doc__ or ""
        print(f"{document.strip()}\n\nflags:\n{help_text or flags_help(module)}")
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
    shown: tuple[type[Exception], ...] = (ValueError, OSError, MissingExtraError, *more)
    try:
        yield
    except shown as error:
        absl_logging.debug("traceback", exc_info=True)
        fail(" ".join(str(error).split()), status=1)


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line on the standard error and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def flags_help(module: str) -> str:
    """Describe the flags that a module defines, a paragraph each."""
    # Its first line names the module.
    return str(flags.FLAGS.module_help(module)).lstrip().partition("\n")[2]


def last_line(error: Exception) -> str:
    """Return the last line of an error's text: of ml_collections' lines the one that says it."""
    lines = str(error.args[0] if error.args else error).strip().splitlines()
    return lines[-1] if lines else "no message"
