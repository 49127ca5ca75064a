"""Data sets by name: `register_dataset("mine")(load)`, then `data.name = "mine"` in a config."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from ghn_jax.configuration.validation import is_redefinition, suggest
from ghn_jax.data.splits import Dataset

Folder = str | os.PathLike[str] | None
_F = TypeVar("_F", bound=Callable[..., Dataset])


class DatasetRegistry:
    """Functions that load data sets, by name, and by prefix for those that lie somewhere."""

    def __init__(self) -> None:
        self._loaders: dict[str, Callable[..., Dataset]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def register(self, name: str) -> Callable[[_F], _F]:
        """See `register_dataset`."""
        if not isinstance(name, str) or not name or ":" in name[:-1] or name == ":":
            raise ValueError(
                f"name is {name!r}, expected that of a data set, or a prefix that ends in a colon"
            )

        def decorate(load: _F) -> _F:
            known = self._loaders.get(name)
            if known is not None and not is_redefinition(known, load):
                raise ValueError(
                    f"name is {name!r}, expected another: it is that of {known.__qualname__} of"
                    f" {known.__module__}"
                )
            self._loaders[name] = load
            return load

        return decorate

    def load(self, name: str, data_dir: Folder, image_size: int | None) -> Dataset:
        """Load the data set of a name; ValueError lists the names there are."""
        prefix, colon, location = str(name).partition(":")
        load = self._loaders.get(prefix + colon)
        if load is None or (colon and not location):
            names = [f"{n}<location>" if n.endswith(":") else n for n in self]
            raise ValueError(
                f"name is {name!r}{suggest(name, names)}, expected one of {', '.join(names)},"
                " or one of your own, registered by ghn_jax.register_dataset"
            )
        arguments = (location, data_dir, image_size) if colon else (data_dir, image_size)
        dataset = load(*arguments)
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"{load.__qualname__} of {load.__module__} returned {dataset!r}, expected the"
                f" Dataset {name!r}"
            )
        return dataset


DATASETS = DatasetRegistry()


def register_dataset(name: str) -> Callable[[_F], _F]:
    """Register a function that loads a data set, under a name that configs can use.

    The function returns a `ghn_jax.data.Dataset`; `load_dataset` repeats the channel of grey images
    if more are requested.

    Args:
        name: The value of `data.name` that selects the data set; the function is called with
            `data_dir` and `image_size`, see `load_dataset`. A name that ends in a colon, such as
            "npz:", is a prefix, whose function is called with what follows it before these two.

    Returns:
        The decorator of the function.

    Raises:
        ValueError: If `name` is not as described, or another function has it.
    """
    return DATASETS.register(name)
