"""Variants of a part, by name: modules that register themselves, each with a config of its own.

In: module classes, registered under names. Out: for each a frozen config dataclass,
`Module.Config`, whose fields are those of the module; and, from a config, the module. A larger
config nests it: a name alone stands for the variant with its defaults.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from ghn_jax.configuration.validation import check_positive_int, suggest

_M = TypeVar("_M", bound=type)

PositiveInt = Annotated[int, check_positive_int]
"""The type of a field that is an int of at least 1; any check of (name, value) is annotated so."""


@dataclasses.dataclass(frozen=True)
class VariantConfig:
    """Which variant of a part; the config of each adds the fields that only it has.

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
        part: What they are variants of, such as "message passing"; in errors.
        config: A subclass of `VariantConfig` for the part, from which those of variants descend.
        register_name: Name of the function that registers one; in errors.
        provided: Fields of modules that the hypernetwork fills in; they are in no config.
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
        """Register a module under a name; a decorator of its class.

        Args:
            name: In configs.

        Returns:
            The decorator. The class gets the attribute `Config`, the type of its config.

        Raises:
            ValueError: If another class has the name, or a field of the class has no default.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"name is {name!r}, expected that of a variant of {self.part}")

        def decorate(module: _M) -> _M:
            known = self._modules.get(name)
            # A notebook's cell or a config file may run twice.
            if known is not None and _location(known) != _location(module):
                raise ValueError(
                    f"name is {name!r}, expected another: it is that of {known.__qualname__} of"
                    f" {known.__module__}"
                )
            module.Config = self._derive_config(name, module)  # type: ignore[attr-defined]
            self._modules[name] = module
            return module

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __getitem__(self, name: str) -> Any:
        """The module class of a name; ValueError lists the names there are."""
        if name not in self._modules:
            raise ValueError(
                f"name is {name!r}{suggest(name, self)}, expected one of {', '.join(self)}, or one"
                f" of your own, registered by ghn_jax.{self._register_name}"
            )
        return self._modules[name]

    def config_type(self, name: str) -> type[VariantConfig]:
        """The type of a variant's config."""
        config: type[VariantConfig] = self[name].Config
        return config

    def config(self, name: str, **fields: Any) -> Any:
        """The config of a variant, with some of its fields."""
        return self.config_type(name)(name, **fields)

    def create(self, config: VariantConfig, **provided: Any) -> Any:
        """Make the module that a config describes.

        Args:
            config: Of a variant.
            **provided: Values for those fields of the module that are not in its config; it need
                not have them.

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
                    " may give nothing but the name"
                )
            default = dataclasses.field(default=field.default)
            fields.append((field.name, hints[field.name], default))
        config = dataclasses.make_dataclass("Config", fields, bases=(self._config,), frozen=True)
        config.__doc__ = inspect.getdoc(module)
        config.__module__ = module.__module__
        config.__qualname__ = f"{module.__qualname__}.Config"  # where pickle finds it
        return config


def _location(module: Any) -> tuple[str, str]:
    return module.__module__, module.__qualname__


def parse_variant(part: type[VariantConfig], value: Any) -> Any:
    """Return the name and the values of a variant's config that a config file or JSON gives.

    Args:
        part: The config type of the part.
        value: A name, or a mapping with one.

    Returns:
        The type of the variant's config, and a mapping of its fields. Fields that are None are
        left out: a config lists those of all variants.

    Raises:
        ValueError: If there is no such variant.
    """
    if isinstance(value, str):
        return part.variants.config_type(value), {}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError(
            f"is {value!r}, expected the name of a variant of {part.variants.part}, or a mapping"
            " with a name"
        )
    fields = {name: field for name, field in value.items() if field is not None}
    return part.variants.config_type(value["name"]), fields
