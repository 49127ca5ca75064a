"""Find config files by path or name, and turn them into validated configs.

In: a file such as `launch/configs/digits.py`, or the name of one that comes with the package, such
as "digits". Out: a frozen config, by default an `ExperimentConfig`. A config file starts from
`default_config()`, which holds every field, so that every field can be overridden.
"""

from __future__ import annotations

import importlib.resources
import pathlib
import typing
from collections.abc import Sequence
from typing import Any

from ghn_jax.configuration.conversion import iterate_fields
from ghn_jax.extras import extra
from ghn_jax.training.config import ExperimentConfig

with extra("train", "configs"):
    import ml_collections
    from ml_collections.config_dict import placeholder


def default_config(config_type: type[Any] = ExperimentConfig) -> ml_collections.ConfigDict:
    """Return every field of a config at its default.

    The result rejects unknown fields and values of the wrong type. Optional fields that are None
    still know their type.
    """
    config = _Section()
    for field in iterate_fields(config_type):
        *path, name = field.name.split(".")
        section = config
        for part in path:
            if part not in section:
                section[part] = _Section()
            section = section[part]
        value = placeholder(_value_type(field.hint)) if field.default is None else field.default
        section[name] = value
    return config.lock()


class _Section(ml_collections.ConfigDict):
    """A section where a name alone stands for a part: `config.ghn.message_passing = "mlp"`."""

    def __setitem__(self, key: str, value: Any) -> None:
        part = self.get(key)
        if (
            isinstance(value, str)
            and isinstance(part, ml_collections.ConfigDict)
            and "name" in part
        ):
            part["name"] = value
        else:
            super().__setitem__(key, value)


def build_config(
    config: ml_collections.ConfigDict,
    config_type: type[Any] = ExperimentConfig,
    unset: Sequence[str] = (),
) -> Any:
    """Turn the ConfigDict of a config file into a validated config.

    Args:
        config: sections of fields; missing ones keep their defaults.
        config_type: the type of the result.
        unset: dotted names of fields that are None whatever `config` holds.

    Returns:
        The frozen config.

    Raises:
        ValueError: if a field is unknown or its value is wrong; it names the field's dotted path.
    """
    values = config.to_dict()
    for path in unset:
        *sections, name = path.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = None
    return config_type.from_dict(values)


def packaged_configs(kind: str = "") -> dict[str, pathlib.Path]:
    """Return the config files that come with the package, by name.

    Args:
        kind: kind of program whose configs to return: "train", "finetune" or "network"; all if
            empty.

    Returns:
        A dict from name to path.
    """
    folder = pathlib.Path(str(importlib.resources.files("ghn_jax.configs")))
    files = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
    others = ("finetune", "network")  # the others train a GHN
    if kind in others:
        return {name: path for name, path in files.items() if name.startswith(kind)}
    return {n: path for n, path in files.items() if not (kind and n.startswith(others))}


def find_config(location: str) -> pathlib.Path | None:
    """Return the config file at a path or with a packaged name; None if there is none."""
    path = pathlib.Path(location)
    return path if path.is_file() else packaged_configs().get(location)


def _value_type(hint: object) -> type:
    """Return the runtime type of a hint such as `tuple[int, ...] | None`."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    option = options[0]
    return typing.get_origin(option) or option
