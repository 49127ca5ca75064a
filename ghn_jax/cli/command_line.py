"""What the programs share: flags parsed by absl, and errors reported in one line.

In: the command line. Out: parsed flags, or one line on standard error and an exit status: 2 for a
mistake on the command line or in a config, 1 for a later failure, 73 if another run has the folder,
75 if the program was asked to stop and the same command goes on.
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

from ghn_jax.configuration.validation import shorten
from ghn_jax.extras import MissingExtraError
from ghn_jax.training.event_loops import use_patient_loops
from ghn_jax.training.folder_lock import IN_USE_STATUS, FolderInUseError
from ghn_jax.training.interruption import RESUME_STATUS, InterruptedRunError

_HELP = ("--help", "-help", "--helpfull", "-helpfull", "--helpshort", "-helpshort", "-h")

_LONGEST_MESSAGE = 2000  # characters; the longest of ours list a GHN's tensors
_TOO_LARGE: dict[type[Exception], str] = {
    MemoryError: "there is not enough memory",
    RecursionError: "something is nested too deeply",
    OverflowError: "a number is too large",
}


def run_program(
    main: Callable[[], None], argv: Sequence[str] | None = None, *errors: type[Exception]
) -> NoReturn:
    """Run a program whose flags are defined in the module of its main function, and exit.

    Args:
        main: called after the flags are parsed.
        argv: the command line, starting with the program's name; None means the process's.
        errors: exceptions that `main` raises with a message for the user, besides ValueError and
            OSError.
    """

    def call_main(left: Sequence[str]) -> None:
        del left  # only the program's name
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
    """Parse the command line with absl, as the `flags_parser` of `app.run`.

    Args:
        module: name of the module that defines the program's flags; `--help` begins with its
            docstring.
        argv: the command line, starting with the program's name.
        check: called with the arguments before they are parsed; raises ValueError.
        help_text: what `--help` prints below that docstring; None lists the module's flags.

    Returns:
        The rest of the command line, which is only the program's name.
    """
    if any(argument in _HELP for argument in argv[1:]):
        document = sys.modules[module].__doc__ or ""
        print(f"{document.strip()}\n\nflags:\n{help_text or flags_help(module)}")
        sys.exit(0)
    try:
        check(argv[1:])
        left = flags.FLAGS(argv)
    except (
        *(flags.Error, ValueError, TypeError, AttributeError, KeyError),
        *(MemoryError, RecursionError, OverflowError),
    ) as error:
        fail(last_line(error))
    if len(left) > 1:
        fail(f"unexpected argument {left[1]!r}, expected only flags (--name=value)")
    use_patient_loops()
    if flags.FLAGS["verbosity"].using_default_value:
        # absl would raise the level to INFO, at which Orbax logs a hundred lines per checkpoint.
        # Our errors repeat what tfds and Orbax say through absl's own logger, with tracebacks.
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        logging.getLogger("ghn_jax").setLevel(logging.INFO)
    return left  # type: ignore[no-any-return]


@contextlib.contextmanager
def errors_in_one_line(*more: type[Exception]) -> Iterator[None]:
    """Report errors meant for the user in one line and exit; `--verbosity=1` shows the traceback.

    Args:
        more: such errors besides ValueError and OSError, and those that say that something is too
            large: for memory, for the stack or for a number.
    """
    shown: tuple[type[Exception], ...] = (
        *(ValueError, OSError, MissingExtraError, InterruptedRunError),
        *more,
    )
    try:
        yield
    except shown as error:
        absl_logging.debug("traceback", exc_info=True)
        status = 1
        if isinstance(error, InterruptedRunError):
            status = RESUME_STATUS
        elif isinstance(error, FolderInUseError):
            status = IN_USE_STATUS
        fail(str(error) or type(error).__name__, status)
    except (MemoryError, OverflowError, RuntimeError) as error:
        absl_logging.debug("traceback", exc_info=True)
        kinds = (kind for kind in _TOO_LARGE if isinstance(error, kind))
        # What the device says has no class of its own.
        kind = MemoryError if "RESOURCE_EXHAUSTED" in str(error) else next(kinds, None)
        if kind is None:
            raise
        fail(f"{_TOO_LARGE[kind]} ({type(error).__name__}: {error})", 1)


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line of bounded length to standard error and exit."""
    print(f"error: {shorten(message, _LONGEST_MESSAGE)}", file=sys.stderr)
    sys.exit(status)


def flags_help(module: str) -> str:
    """Describe the flags that a module defines, one paragraph each."""
    # The first line of absl's text names the module.
    return str(flags.FLAGS.module_help(module)).lstrip().partition("\n")[2]


def last_line(error: Exception) -> str:
    """Return the last line of an error's text, the one that matters in ml_collections' errors."""
    lines = str(error.args[0] if error.args else error).strip().splitlines()
    return lines[-1] if lines else "no message"
