"""`--config FILE --config.section.field=value --workdir DIR`, with errors instead of tracebacks.

In: the command line. Out: a call of the program's main function with a validated config, by default
an `ExperimentConfig`, and the run's folder. A config file begins with `default_config()`, which
holds every field, so that every field can be overridden on the command line.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import pathlib
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ml_collections
from absl import app, flags
from ml_collections import config_flags
from ml_collections.config_dict import placeholder

from ghn_jax.architectures.validation import suggest
from ghn_jax.training.config import ExperimentConfig, describe_fields
from ghn_jax.training.conversion import iterate_fields
from launch.command_line import errors_in_one_line, fail, last_line, parse_flags

_CONFIGS = pathlib.Path(__file__).parent / "configs"


def default_config(config_type: type[Any] = ExperimentConfig) -> ml_collections.ConfigDict:
    """Return every field of a config at its default.

    The result refuses fields that do not exist and values of another type. Fields that may be None
    and are None still know their type.
    """
    config = ml_collections.ConfigDict()
    for field in iterate_fields(config_type):
        section, _, name = field.name.rpartition(".")
        if section and section not in config:
            config[section] = ml_collections.ConfigDict()
        value = placeholder(_value_type(field.hint)) if field.default is None else field.default
        (config[section] if section else config)[name] = value
    return config.lock()


def build_config(
    config: ml_collections.ConfigDict, config_type: type[Any] = ExperimentConfig
) -> Any:
    """Turn what a config file returns into a validated config.

    Args:
        config: sections of fields; what is missing keeps its default.
        config_type: of the result.

    Returns:
        The frozen config.

    Raises:
        ValueError: if a field is unknown or its value is wrong; names its dotted path.
    """
    return config_type.from_dict(config.to_dict())


def run(
    main: Callable[[Any, str], None],
    *errors: type[Exception],
    config_type: type[Any] = ExperimentConfig,
    example: str = "train",
) -> NoReturn:
    """Run a program that takes `--config` and `--workdir`, and exit.

    Mistakes on the command line or in the config end with one line on the standard error and exit
    status 2, errors of the program with one line and exit status 1. `--help` lists every field of
    the config.

    Args:
        main: called with the config and the run's folder.
        errors: what `main` raises, besides ValueError and OSError, with a text for its user.
        config_type: of the config.
        example: beginning of the names of config files for the program.
    """
    own_flags = _own_flags_help()
    config_flag = config_flags.DEFINE_config_file(
        "config", help_string="Python file with a function get_config() -> ConfigDict."
    )
    workdir_flag = flags.DEFINE_string(
        "workdir", None, "Folder for checkpoints and metrics; a run in it is continued."
    )

    def call_main(argv: Sequence[str]) -> None:
        del argv  # nothing but the program's name
        if workdir_flag.value is None:
            fail("--workdir is missing, expected the folder for checkpoints and metrics")
        try:
            config = build_config(config_flag.value, config_type)
        except ValueError as error:
            fail(str(error))
        with errors_in_one_line(*errors):
            main(config, workdir_flag.value)

    def parse(argv: Sequence[str]) -> list[str]:
        check = functools.partial(check_arguments, config_type=config_type, example=example)
        help_text = functools.partial(_help_text, config_type, example, own_flags)
        return parse_flags(argv, check, help_text)

    app.run(call_main, flags_parser=parse)


def check_arguments(
    arguments: Sequence[str],
    config_type: type[Any] = ExperimentConfig,
    example: str = "",
) -> None:
    """Check the config's path, that the file gives a config, and the names of overridden fields.

    Args:
        arguments: the command line without the program's name.
        config_type: of the config.
        example: beginning of the names of config files for the program.

    Raises:
        ValueError: if no config file is given, it does not exist or fails, or a field is unknown.
    """
    paths = [
        argument.partition("=")[2] if "=" in argument else "".join(arguments[index + 1 : index + 2])
        for index, argument in enumerate(arguments)
        if re.match(r"--?config(=|$)", argument)
    ]
    if not paths:
        raise ValueError(
            f"--config is missing, expected a Python file such as {_list_configs(example)}"
        )
    if not pathlib.Path(paths[-1].split(":")[0]).is_file():
        near = suggest(paths[-1], _list_configs().split(", "))
        raise ValueError(
            f"--config is {paths[-1]!r}{near}, expected a file such as {_list_configs(example)}"
        )
    _load_config_file(paths[-1])
    names = [field.name for field in iterate_fields(config_type)]
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]*)(?:=(.*))?$", argument, flags=re.DOTALL)
        if match and match[1] not in names:
            raise ValueError(
                f"config.{match[1]} (value {match[2]!r}) is not a field"
                f"{_suggest_field(match[1], names)}; --help lists all fields"
            )


def _load_config_file(location: str) -> None:
    """Raise ValueError naming the file unless its `get_config` returns a ConfigDict."""
    path, *argument = location.split(":", 1)
    specification = importlib.util.spec_from_file_location("config_file", path)
    if specification is None or specification.loader is None:
        raise ValueError(f"--config is {path!r}, expected a Python file (.py)")
    module = importlib.util.module_from_spec(specification)
    # A config file is the user's program: whatever it raises is a mistake in that file.
    try:
        specification.loader.exec_module(module)
        config = module.get_config(*argument)
    except Exception as error:
        raise ValueError(f"--config {path}: {type(error).__name__}: {last_line(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"--config {path}: get_config() returned {config!r}, expected a ConfigDict"
        )


def _suggest_field(name: str, names: Sequence[str]) -> str:
    last = name.rpartition(".")[2]
    # The right field in the wrong section is as likely as a misspelt one.
    elsewhere = [candidate for candidate in names if candidate.rpartition(".")[2] == last]
    matches = elsewhere or difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {'config.' + matches[0]!r}?)" if matches else ""


def _list_configs(example: str = "") -> str:
    names = sorted(path.name for path in _CONFIGS.glob("*.py") if path.name != "__init__.py")
    kinds = ("finetune", "network")  # the others train a GHN
    if example in kinds:
        names = [name for name in names if name.startswith(example)]
    elif example:
        names = [name for name in names if not name.startswith(kinds)]
    return ", ".join(f"launch/configs/{name}" for name in names)


def _value_type(hint: object) -> type:
    """Return the runtime type of a hint such as `tuple[int, ...] | None`."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    option = options[0]
    return typing.get_origin(option) or option


def _own_flags_help() -> str:
    """The flags that the program itself defined so far."""
    main_flags = flags.FLAGS.main_module_help().lstrip().partition("\n")[2]
    return f"{main_flags}\n" if main_flags else ""


def _help_text(config_type: type[Any], example: str, own_flags: str) -> str:
    return (
        f"{own_flags}"
        "  --config FILE\n      Python file with a function get_config() -> ConfigDict, such as\n"
        f"      {_list_configs(example)}\n"
        "  --workdir DIR\n      Folder for checkpoints and metrics; a run in it is continued.\n"
        "  --verbosity N\n      1 shows the traceback of an error.\n"
        f"\nfields of the config:\n{describe_fields(config_type)}"
    )
