"""Convert between nested frozen dataclasses and nested dictionaries, checking each field.

In: a dataclass type and a mapping (from a ConfigDict or JSON). Out: the dataclass, or a ValueError
that names the field by its dotted path, the value, what was expected and, for a misspelt name, the
nearest one. `describe_fields` lists a type's fields for `--help`, with the sentences in the
`Attributes:` sections of the class docstrings.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ghn_jax.configuration.validation import describe_value, shorten, suggest
from ghn_jax.configuration.variants import VariantConfig, parse_variant

_T = TypeVar("_T")


def build_dataclass(cls: type[_T], values: Mapping[str, Any], path: str = "config") -> _T:
    """Build a dataclass, and those nested in it, from a mapping.

    Args:
        cls: a dataclass type whose fields are int, float, str, bool, unions with None, tuples of
            these, or dataclasses. A list may stand for a tuple, an int for a float, and a name for
            the config of a variant.
        values: values by field name; fields that have a default may be missing.
        path: dotted path of `values`, with which field names in errors begin.

    Returns:
        The validated dataclass.

    Raises:
        ValueError: if a field is unknown, missing, or of the wrong type or value.
    """
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{path} is {describe_value(values)}, expected a mapping of the fields of"
            f" {cls.__name__}"
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            raise ValueError(
                f"{path}.{shorten(name, 100)} (value {describe_value(value)}) is not a"
                f" field{suggest(name, fields)}, expected one of {', '.join(fields)}"
            )
    for name, field in fields.items():
        if name not in values and not _has_default(field):
            raise ValueError(f"{path}.{name} is missing, expected a value")
    hints = typing.get_type_hints(cls)
    converted = {
        name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()
    }
    try:
        return cls(**converted)
    except ValueError as error:
        # The class names only its own field, so the path is put in front.
        message = str(error)
        separator = "." if re.split(r"[ .\[]", message)[0] in fields else ": "
        raise ValueError(f"{path}{separator}{message}") from error


def build_variant(part: type[VariantConfig], value: Any, path: str) -> Any:
    """Build the config of a variant.

    Args:
        part: The config type of the part that has the variants.
        value: A variant's name, a mapping with a name and fields, or the config itself.
        path: Dotted path of the value, with which field names in errors begin.

    Returns:
        The config.

    Raises:
        ValueError: If there is no such variant, or a field is unknown or has a bad value.
    """
    if isinstance(value, part):
        return value
    try:
        config, values = parse_variant(part, value)
    except ValueError as error:
        separator = "." if str(error).startswith("name ") else " "
        raise ValueError(f"{path}{separator}{error}") from error
    return build_dataclass(config, values, path)


def to_dictionary(value: Any) -> Any:
    """Return a dataclass as nested dictionaries and lists, ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_dictionary(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, (tuple, list)):
        return [to_dictionary(item) for item in value]
    return value


@dataclasses.dataclass(frozen=True)
class FieldDescription:
    """Describes one field of a nested dataclass type.

    Attributes:
        name: the field's dotted path, without the name of the outermost type.
        hint: the field's type.
        default: the field's default, `dataclasses.MISSING` if it has none.
        sentence: what the docstring says about the field, on one line.
    """

    name: str
    hint: Any
    default: Any
    sentence: str


def iterate_fields(cls: type, prefix: str = "") -> Iterator[FieldDescription]:
    """Yield the fields of a dataclass type in order, unfolding nested dataclasses.

    Args:
        cls: a dataclass type with an `Attributes:` section in its docstring.
        prefix: prefix of every name.

    Yields:
        A description of each field that is not itself a dataclass.

    Raises:
        ValueError: if the docstring does not describe a field.
    """
    hints, missing = typing.get_type_hints(cls), dataclasses.MISSING
    sentences = _attribute_sentences(cls)
    for field in dataclasses.fields(cls):
        name = f"{prefix}{field.name}"
        hint = hints[field.name]
        if _is_variant(hint):
            default = field.default if field.default_factory is missing else field.default_factory()
            yield from _iterate_variants(hint, f"{name}.", default.name, sentences.get(field.name))
            continue
        if dataclasses.is_dataclass(hint):
            yield from iterate_fields(typing.cast(type, hint), f"{name}.")
            continue
        if field.name not in sentences:
            raise ValueError(
                f"{cls.__name__}.{field.name} has no description, expected one in the Attributes"
                " section of the class docstring"
            )
        default = field.default if field.default_factory is missing else field.default_factory()
        yield FieldDescription(name, hint, default, sentences[field.name])


def _is_variant(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, VariantConfig)


def _iterate_variants(
    part: type[VariantConfig], prefix: str, default: str, sentence: str | None
) -> Iterator[FieldDescription]:
    """Yield the name and the fields of all variants; None means a variant's own default."""
    names = ", ".join(part.variants)
    yield FieldDescription(
        f"{prefix}name", str, default, f"{(sentence or part.__name__).rstrip('.')} ({names})."
    )
    found: dict[str, tuple[Any, list[str]]] = {}
    for variant in part.variants:
        config = part.variants.config_type(variant)
        hints, sentences = typing.get_type_hints(config), _attribute_sentences(config)
        for field in dataclasses.fields(config)[1:]:
            sentence = sentences.get(field.name, field.name).rstrip(".")
            text = f"{variant}, {field.default!r} if None: {sentence}"
            hint, texts = found.setdefault(field.name, (hints[field.name], []))
            if hint is not hints[field.name]:
                raise ValueError(
                    f"{field.name} of {variant!r} is {_hint_name(hints[field.name])}, expected"
                    f" {_hint_name(hint)} as of another variant, or another name"
                )
            texts.append(text)
    for name, (hint, texts) in found.items():
        yield FieldDescription(f"{prefix}{name}", hint | None, None, "; ".join(texts) + ".")


def describe_fields(cls: type, prefix: str = "config.", width: int = 100) -> str:
    """List a type's fields for `--help`: dotted name, default and sentence.

    Args:
        cls: a dataclass type, as for `iterate_fields`.
        prefix: prefix of every name.
        width: width of the text in columns.

    Returns:
        Two or more lines per field: name and default, then the indented sentence.
    """
    lines = []
    for field in iterate_fields(cls, prefix):
        required = field.default is dataclasses.MISSING
        default = "required" if required else f"default {field.default!r}"
        lines.append(f"  --{field.name} ({default})")
        lines.extend(textwrap.wrap(field.sentence, width - 6, break_on_hyphens=False))
    return "\n".join(line if line.startswith("  --") else f"      {line}" for line in lines)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Convert `value` to the type `hint`, or raise a ValueError that names `path`."""
    origin = typing.get_origin(hint)
    if _is_variant(hint):
        return build_variant(hint, value, path)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        return build_dataclass(typing.cast(type, hint), value, path)
    if origin in (types.UnionType, typing.Union):
        inner = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None:
            return None
        if len(inner) != 1:
            raise TypeError(f"{path} has the type {hint}, which no config can set")
        return _convert(inner[0], value, path)
    if origin is tuple:
        return _convert_tuple(hint, value, path)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass  # refused below
    # bool is a subclass of int, so types are compared exactly: True is not a count.
    if type(value) is not hint:
        raise ValueError(f"{path} is {describe_value(value)}, expected {hint.__name__}")
    return value


def _convert_tuple(hint: Any, value: Any, path: str) -> tuple[Any, ...]:
    items = typing.get_args(hint)
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"{path} is {describe_value(value)}, expected {_hint_name(hint)}")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ValueError(f"{path} is {describe_value(value)}, expected {len(items)} values")
    return tuple(
        _convert(item, element, f"{path}[{index}]")
        for index, (item, element) in enumerate(zip(items, value, strict=True))
    )


def _hint_name(hint: Any) -> str:
    return str(hint).replace("typing.", "")


def _attribute_sentences(cls: type) -> dict[str, str]:
    """Return the texts in the `Attributes:` section of a class docstring by field name."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    sentences: dict[str, str] = {}
    name = None
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        match = re.match(r" {4}(\w+): (.*)", line)
        if match:
            name = match[1]
            sentences[name] = match[2]
        elif name is not None:
            sentences[name] = f"{sentences[name]} {line.strip()}".strip()
    return sentences
