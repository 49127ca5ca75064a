"""Read the meta file of DeepNets-1M graphs without holding it in memory.

In: `deepnets1m_<split>_meta.json`, {"<split>": {"nets": [entry, ...], "meta": {...}}, ...}. Out:
the tables of ids for one split, and the position of each entry in the file. In every process that
reads them, a million entries would take half a gigabyte as text and gigabytes once parsed; their
positions take 16 megabytes.

`check_entry` is the schema of an entry.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ghn_jax.architectures import Architecture
from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import (
    check_keys,
    check_positive_int,
    describe_value,
    shorten,
)

_CHUNK_SIZE = 1 << 20  # bytes read at a time
_LONGEST_VALUE = 1 << 22  # bytes; an entry has less than a thousand, a table a few thousand
_MOST_IDS = 10_000  # in a table; published ones have 15 primitives and 200 names
_LARGEST_ID = 65_535  # which the graphs hold as uint16


class MetaFile:
    """The part of a meta file that belongs to one split.

    `len(meta)` is the number of networks, and `meta.entry(i)` is what the file says about one.

    Attributes:
        path: path of the file.
        tables: the tables "primitives_ext" and "unique_op_names", each a dict from id to name.
    """

    def __init__(self, path: Path, split: str) -> None:
        """Parse a file once, from start to end.

        Args:
            path: path of the file.
            split: name of a split in the file.

        Raises:
            ValueError: if the file does not exist, is not a meta file, or lacks the split.
        """
        if not path.is_file():
            raise ValueError(f"{path} does not exist, expected the meta file beside the graphs")
        self.path = path
        self._split = split
        spans = array.array("q")
        tables: dict[str, dict[str, str]] | None = None
        splits = []
        try:
            with path.open("rb") as file:
                stream = _JsonStream(file)
                for name in stream.keys():
                    splits.append(name)
                    for key in stream.keys():
                        if key == "nets":
                            for span in stream.skip_items():
                                if name == split:
                                    spans.extend(span)
                        elif name == split and key == "meta":
                            tables = stream.value()
                        else:
                            stream.value()
                stream.expect_end()
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a DeepNets-1M meta file, or is truncated: {shorten(error)}"
            ) from error
        if split not in splits:
            raise ValueError(
                f"{path} has no split {split!r}, expected one of {shorten(', '.join(splits))}"
            )
        self._spans = np.array(spans, np.int64).reshape(-1, 2)
        self.tables = {name: _table(path, tables, name) for name in _TABLES}

    def __len__(self) -> int:
        return len(self._spans)

    def entry(self, index: int) -> dict[str, Any]:
        """Return the entry of a network, unchanged.

        Args:
            index: index of the network.

        Returns:
            The entry.

        Raises:
            ValueError: if the file has changed since it was opened.
        """
        start, stop = self._spans[index].tolist()
        with self.naming_entry(index):
            with self.path.open("rb") as file:
                file.seek(start)
                entry: dict[str, Any] = json.loads(file.read(stop - start))
            return entry

    @contextlib.contextmanager
    def naming_entry(self, index: int) -> Iterator[None]:
        """Put the file and the entry before the text of a ValueError."""
        try:
            yield
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.path}: {self._split}/nets[{index}]: {shorten(error)}"
            ) from error


IMAGE_SETS = ("cifar10", "imagenet")
"""Sets of images, small and large, for which entries count parameters."""
_ANY_WIDTH = 16  # which even networks with attention can have
_TABLES = ("primitives_ext", "unique_op_names")


def _table(path: Path, tables: Any, name: str) -> dict[int, str]:
    if not isinstance(tables, dict) or not isinstance(tables.get(name), dict):
        raise ValueError(f"{path} has no table {name!r} of ids, expected one under 'meta'")
    if len(tables[name]) > _MOST_IDS:
        raise ValueError(
            f"{path}: table {name!r} has {len(tables[name])} ids, expected at most {_MOST_IDS}"
        )
    for key, value in tables[name].items():
        is_id = key.isascii() and key.isdecimal() and len(key) <= 5 and int(key) <= _LARGEST_ID
        if not is_id or not isinstance(value, str):
            raise ValueError(
                f"{path}: table {name!r} has {describe_value(value)} under {describe_value(key)},"
                f" expected a name under an id in 0..{_LARGEST_ID}"
            )
    return {int(key): value for key, value in tables[name].items()}


def check_entry(entry: Any, has_width: bool) -> None:
    """Raise ValueError unless an entry is as the format has it.

    Args:
        entry: the entry.
        has_width: whether it has to have a width; those of training splits have none.
    """
    Architecture.from_official(entry, channels=None if has_width else _ANY_WIDTH)
    if "num_nodes" in entry:
        check_positive_int("num_nodes", entry["num_nodes"], limits.NUM_NODES)
    counts = entry.get("num_params", {})
    check_keys("num_params", counts, (), IMAGE_SETS)
    for name, count in counts.items():
        check_positive_int(f"num_params.{name}", count)


class _JsonStream:
    """Parses JSON piece by piece, holding a few chunks of the file at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._text = ""
        self._position = 0  # of the parser, in the text
        self._offset = 0  # of the text, in the file
        self._decoder = json.JSONDecoder()

    def keys(self) -> Iterator[str]:
        """Yield the keys of an object; the caller reads each value before the next key."""
        self._take("{")
        if self._peek() == "}":
            self._take("}")
            return
        while True:
            key = self.value()
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def skip_items(self) -> Iterator[tuple[int, int]]:
        """Yield the position in the file of each item of an array: its first byte and its end."""
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return
        for index in itertools.count():
            self._peek()
            start = self._offset + self._position
            value = self.value()
            if not isinstance(value, dict):
                raise ValueError(
                    f"item {index} at byte {start} is {describe_value(value)}, expected an object"
                )
            yield start, self._offset + self._position
            if self._take(",]") == "]":
                return

    def value(self) -> Any:
        """Read any value."""
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError:
                # The chunk may have cut it off; tables and entries are much shorter than the limit.
                if len(self._text) - self._position > _LONGEST_VALUE or not self._read_on():
                    raise
            else:
                self._position = end
                return value

    def expect_end(self) -> None:
        """Raise ValueError unless only white space is left."""
        if self._peek() != "":
            raise ValueError(
                f"byte {self._offset + self._position} is beyond the end of the object"
            )

    def _take(self, characters: str) -> str:
        found = self._peek()
        if not found or found not in characters:
            raise ValueError(
                f"byte {self._offset + self._position} is {found!r}, expected one of {characters!r}"
            )
        self._position += 1
        return found

    def _peek(self) -> str:
        """Skip white space and return the next character, or "" at the end."""
        while True:
            while self._text[self._position : self._position + 1].isspace():
                self._position += 1
            if self._position < len(self._text) or not self._read_on():
                return self._text[self._position : self._position + 1]

    def _read_on(self) -> bool:
        chunk = self._file.read(_CHUNK_SIZE)
        self._offset += self._position
        # Decode to one character per byte, so that text positions match file positions.
        self._text = self._text[self._position :] + chunk.decode("latin-1")
        self._position = 0
        return bool(chunk)
