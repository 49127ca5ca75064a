"""`--config FILE --config.section.field=value --workdir DIR`, with errors instead of tracebacks.

In: the command line. Out: a call of the program's main function with a validated config, by default
an `ExperimentConfig`, and the run's folder. The config file is given by its path, or by name if it
comes with the package.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import itertools
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags

from ghn_jax.cli.command_line import errors_in_one_line, fail, flags_help, last_line, parse_flags
from ghn_jax.cli.config_dict import build_config, find_config, packaged_configs
from ghn_jax.configuration.conversion import iterate_fields
from ghn_jax.configuration.validation import describe_value, shorten, suggest
from ghn_jax.extras import extra
from ghn_jax.training.config import ExperimentConfig, describe_fields

with extra("train", "configs"):
    import ml_collections
    from ml_collections import config_flags


def run(
    main: Callable[[Any, str], None],
    argv: Sequence[str] | None = None,
    *errors: type[Exception],
    config_type: type[Any] = ExperimentConfig,
    kind: str = "train",
) -> NoReturn:
    """Run a program that takes `--config` and `--workdir`, and exit.

    Mistakes on the command line or in the config are reported in one line on standard error, with
    exit status 2; errors of the program in one line, with exit status 1. A run that was asked to
    stop exits with status 75, one whose folder is in use with 73. `--help` lists every field of the
    config.

    Args:
        main: called with the config and the run's folder.
        argv: the command line, starting with the program's name; None means the process's.
        errors: exceptions that `main` raises with a message for the user, besides ValueError and
            OSError.
        config_type: the type of the config.
        kind: the kind of packaged configs that suit the program; see `packaged_configs`.
    """
    arguments = resolve_names(sys.argv if argv is None else argv, config_type)
    arguments, unset = split_none(arguments, config_type)
    config_flag = config_flags.DEFINE_config_file(
        "config",
        help_string="Python file with a function get_config() -> ConfigDict.",
        sys_argv=arguments,  # in the process's own, names would not be resolved
    )
    workdir_flag = flags.DEFINE_string(
        "workdir", None, "Folder for checkpoints and metrics; a run in it is resumed."
    )

    def call_main(left: Sequence[str]) -> None:
        del left  # only the program's name
        if workdir_flag.value is None:
            fail("--workdir is missing, expected the folder for checkpoints and metrics")
        try:
            config = build_config(config_flag.value, config_type, unset)
        except ValueError as error:
            fail(str(error))
        with errors_in_one_line(*errors):
            main(config, workdir_flag.value)

    def parse(arguments: Sequence[str]) -> list[str]:
        check = functools.partial(check_arguments, config_type=config_type, kind=kind)
        help_text = _help_text(config_type, kind, flags_help(main.__module__))
        return parse_flags(main.__module__, arguments, check, help_text)

    app.run(call_main, arguments, flags_parser=parse)


_CONFIG = re.compile(r"(--?config)(?:=(.*))?$", flags=re.DOTALL)


def resolve_names(arguments: Sequence[str], config_type: type[Any] = ExperimentConfig) -> list[str]:
    """Expand abbreviations on the command line.

    Args:
        arguments: the command line.
        config_type: the type of the config.

    Returns:
        The command line in which the name of a packaged config (`--config digits`) is replaced by
        its path, and a part given by name alone (`--config.ghn.message_passing=mlp`) by the field
        that holds the name.
    """
    parts = {
        field.name.removesuffix(".name")
        for field in iterate_fields(config_type)
        if field.name.endswith(".name")
    }
    resolved: list[str] = []
    for argument in arguments:
        match = _CONFIG.match(argument)
        part, equals, value = argument.partition("=")
        if match and match[2] is not None:
            argument = f"{match[1]}={_resolve(match[2])}"
        elif resolved and re.fullmatch("--?config", resolved[-1]):
            argument = _resolve(argument)
        elif re.sub(r"^--?config\.", "", part) in parts:
            argument = f"{part}.name{equals}{value}"
        resolved.append(argument)
    return resolved


def split_none(
    arguments: Sequence[str], config_type: type[Any] = ExperimentConfig
) -> tuple[list[str], list[str]]:
    """Take out the overrides that set an optional field to none, which the flags cannot parse.

    Of several values of a field the last one counts, as everywhere on the command line.

    Args:
        arguments: the command line.
        config_type: the type of the config.

    Returns:
        The command line without overrides that are `None` or `none`, and the dotted names of the
        fields that these set.
    """
    hints = {field.name: field.hint for field in iterate_fields(config_type)}
    optional = {name for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    rest: list[tuple[str, list[str]]] = []  # words, with the field if it is an optional one
    unset: list[str] = []
    left = iter(arguments)
    for argument in left:
        match = re.match(r"--?config\.([^=]*)(?:=(.*))?$", argument, flags=re.DOTALL)
        if not match or match[1] not in optional:
            rest.append(("", [argument]))
            continue
        name, words = match[1], [argument]
        if match[2] is None:  # the value is the next word
            words += itertools.islice(left, 1)
        unset = [other for other in unset if other != name]
        if (words[-1] if match[2] is None else match[2]) in ("None", "none"):
            rest = [entry for entry in rest if entry[0] != name]
            unset.append(name)
        else:
            rest.append((name, words))
    return [word for _, words in rest for word in words], unset


def _resolve(location: str) -> str:
    """Resolve the name of a config file, which may be followed by a colon and an argument."""
    name, colon, argument = location.partition(":")
    path = find_config(name)
    return location if path is None else f"{path}{colon}{argument}"


def check_arguments(
    arguments: Sequence[str],
    config_type: type[Any] = ExperimentConfig,
    kind: str = "",
) -> None:
    """Check the config's path, that the file returns a config, and the names of overridden fields.

    Args:
        arguments: the command line without the program's name and with config names resolved.
        config_type: the type of the config.
        kind: the kind of packaged configs that errors list.

    Raises:
        ValueError: if no config file is given, it does not exist or fails, or a field is unknown.
    """
    paths = [
        "".join(arguments[index + 1 : index + 2]) if match[2] is None else match[2]
        for index, match in enumerate(map(_CONFIG.match, arguments))
        if match
    ]
    expected = f"a Python file or one of {', '.join(packaged_configs(kind))}"
    if not paths:
        raise ValueError(f"--config is missing, expected {expected}")
    if find_config(paths[-1].split(":")[0]) is None:
        near = suggest(pathlib.Path(paths[-1]).stem, list(packaged_configs()))
        raise ValueError(f"--config is {paths[-1]!r}{near}, expected {expected}")
    load_config_file(paths[-1])
    names = [field.name for field in iterate_fields(config_type)]
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]*)(?:=(.*))?$", argument, flags=re.DOTALL)
        if match and match[1] not in names:
            raise ValueError(
                f"config.{match[1]} (value {match[2]!r}) is not a field"
                f"{_suggest_field(match[1], names)}; --help lists all fields"
            )


def load_config_file(location: str) -> ml_collections.ConfigDict:
    """Run a config file and return what its `get_config` does.

    Args:
        location: the file's path, which may be followed by a colon and an argument.

    Returns:
        The config.

    Raises:
        ValueError: if the file fails, or returns something else; it names the file.
    """
    path, *argument = location.split(":", 1)
    # What lies beside the file can be imported, as from a script: modules that register parts.
    folder = str(pathlib.Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    # ml_collections' name: a class of the file that registers itself is the same when it runs again
    specification = importlib.util.spec_from_file_location("config_config", path)
    if specification is None or specification.loader is None:
        raise ValueError(f"--config is {path!r}, expected a Python file (.py)")
    module = importlib.util.module_from_spec(specification)
    # A config file is the user's code, so whatever it raises is a mistake in that file.
    try:
        specification.loader.exec_module(module)
        config = module.get_config(*argument)
    except Exception as error:
        # ml_collections' texts hold the whole config.
        reason = f"{type(error).__name__}: {shorten(last_line(error))}"
        raise ValueError(f"--config {path}: {reason}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"--config {path}: get_config() returned {describe_value(config)}, expected a"
            " ConfigDict"
        )
    return config


def _suggest_field(name: str, names: Sequence[str]) -> str:
    last = name.rpartition(".")[2]
    # The right field in the wrong section is as likely as a misspelt one.
    elsewhere = [candidate for candidate in names if candidate.rpartition(".")[2] == last]
    matches = elsewhere or difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {'config.' + matches[0]!r}?)" if matches else ""


def _help_text(config_type: type[Any], kind: str, own_flags: str) -> str:
    names = ", ".join(packaged_configs(kind))
    return (
        f"{own_flags and own_flags + chr(10)}"
        "  --config FILE\n      Python file with a function get_config() -> ConfigDict, or one of\n"
        f"      {names}\n"
        "  --workdir DIR\n      Folder for checkpoints and metrics; a run in it is resumed.\n"
        "  --verbosity N\n      1 shows the traceback of an error.\n"
        f"\nfields of the config:\n{describe_fields(config_type)}"
    )
