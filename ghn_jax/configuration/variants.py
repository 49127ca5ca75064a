"""Variants of a part by name: modules that register themselves, each with a config of its own.

In: module classes, registered under names. Out: for each class a frozen config dataclass,
`Module.Config`, whose fields are those of the module; and for a config, the module. Larger configs
nest these configs, and a name alone stands for the variant with its defaults.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import (
    check_positive_int,
    describe_value,
    is_redefinition,
    suggest,
)

_M = TypeVar("_M", bound=type)

PositiveInt = Annotated[int, functools.partial(check_positive_int, most=limits.NUM_LAYERS)]
"""Type of a field that counts layers, rounds or heads, at least 1.

Any check of (name, value) can annotate a field.
"""


@dataclasses.dataclass(frozen=True)
class VariantConfig:
    """Chooses a variant of a part; each variant's config adds the fields that only it has.

    Attributes:
        name: name of the variant.
    """

    name: str

    variants: ClassVar[Variants]

    def __post_init__(self) -> None:
        if self.name != (own := dataclasses.fields(self)[0].default):
            raise ValueError(f"name is {self.name!r}, expected {own!r}")
        for field, hint in typing.get_type_hints(type(self), include_extras=True).items():
            for check in getattr(hint, "__metadata__", ()):
                check(field, getattr(self, field))


class Variants:
    """The variants of one part.

    Args:
        part: The part's name in errors, such as "message passing".
        config: The part's subclass of `VariantConfig`, from which the variants' configs derive.
        register_name: Name, in errors, of the function that registers a variant.
        provided: Module fields that the hypernetwork fills in and that configs do not have.
    """

    def __init__(
        self,
        part: str,
        config: type[VariantConfig],
        register_name: str,
        provided: tuple[str, ...] = (),
    ) -> None:
        self.part = part
        self._config = config
        self._register_name = register_name
        self._provided = (*provided, "parent", "name")
        self._modules: dict[str, Any] = {}
        config.variants = self

    def register(self, name: str) -> Callable[[_M], _M]:
        """Register a module class under a name.

        Args:
            name: The variant's name in configs.

        Returns:
            A decorator for the class, which gives it the attribute `Config`, the type of its
            config.

        Raises:
            ValueError: If another class has the name, or a field of the class has no default.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"name is {name!r}, expected that of a variant of {self.part}")

        def decorate(module: _M) -> _M:
            known = self._modules.get(name)
            if known is not None and not is_redefinition(known, module):
                raise ValueError(
                    f"name is {name!r}, expected another: it is taken by {known.__qualname__} of"
                    f" {known.__module__}"
                )
            module.Config = self._derive_config(name, module)  # type: ignore[attr-defined]
            self._modules[name] = module
            return module

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __getitem__(self, name: str) -> Any:
        """Return the module class with a name; a ValueError lists the known names."""
        if not isinstance(name, str) or name not in self._modules:
            raise ValueError(
                f"name is {describe_value(name)}{suggest(name, self)}, expected one of"
                f" {', '.join(self)}, or one of your own, registered by"
                f" ghn_jax.{self._register_name}"
            )
        return self._modules[name]

    def config_type(self, name: str) -> type[VariantConfig]:
        """Return the type of a variant's config."""
        config: type[VariantConfig] = self[name].Config
        return config

    def config(self, name: str, **fields: Any) -> Any:
        """Create the config of a variant from some of its fields."""
        return self.config_type(name)(name, **fields)

    def create(self, config: VariantConfig, **provided: Any) -> Any:
        """Create the module that a config describes.

        Args:
            config: The config of a variant.
            **provided: Values for module fields that are not in its config; those that the module
                lacks are ignored.

        Returns:
            The module.
        """
        module = self[config.name]
        fields = {field.name for field in dataclasses.fields(module)}
        own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        del own["name"]
        return module(**own, **{n: value for n, value in provided.items() if n in fields})

    def _derive_config(self, name: str, module: Any) -> type[VariantConfig]:
        hints = typing.get_type_hints(module, include_extras=True)
        fields: list[tuple[str, Any, Any]] = [("name", str, dataclasses.field(default=name))]
        for field in dataclasses.fields(module):
            if field.name in self._provided or not field.init:
                continue
            if field.default is dataclasses.MISSING:
                raise ValueError(
                    f"{module.__qualname__}.{field.name} has no default, expected one: a config"
                    " may give only the name"
                )
            default = dataclasses.field(default=field.default)
            fields.append((field.name, hints[field.name], default))
        config = dataclasses.make_dataclass("Config", fields, bases=(self._config,), frozen=True)
        config.__doc__ = inspect.getdoc(module)
        config.__module__ = module.__module__
        config.__qualname__ = f"{module.__qualname__}.Config"  # where pickle looks for it
        return config


def parse_variant(part: type[VariantConfig], value: Any) -> Any:
    """Parse a variant's config as given by a config file or JSON.

    Args:
        part: The config type of the part.
        value: A variant's name, or a mapping with a name.

    Returns:
        The type of the variant's config, and a mapping of its fields. Fields that are None are
        left out, since config files list the fields of all variants.

    Raises:
        ValueError: If there is no such variant.
    """
    if isinstance(value, str):
        return part.variants.config_type(value), {}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError(
            f"is {describe_value(value)}, expected the name of a variant of {part.variants.part},"
            " or a mapping with a name"
        )
    fields = {name: field for name, field in value.items() if field is not None}
    return part.variants.config_type(value["name"]), fields
