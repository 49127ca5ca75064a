"""Results of an evaluation in progress, so that one that was stopped does no work twice.

Each result is a line of `<split>.partial.jsonl` as soon as it is there; the first line says what is
evaluated. The files go when the evaluation has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ghn_jax.arrays import PyTree
from ghn_jax.evaluation.evaluate import (
    ArchitectureResult,
    ArchitectureSplit,
    Candidate,
    EvaluationImages,
)
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.folder_lock import lock_folder

_CHECKSUM = "crc32"  # of the line without it: JSON cut or changed in places may still be JSON


class EvaluationJournal:
    """The results of an evaluation so far.

    Args:
        folder: The folder of the results.
        identity: All that the results depend on, which JSON can hold. Results of something else
            are dropped.
    """

    def __init__(self, folder: pathlib.Path, identity: dict[str, Any]) -> None:
        self._folder, self._first_line = folder, json.dumps(identity, sort_keys=True) + "\n"

    def resume(
        self,
        split: ArchitectureSplit,
        evaluate: Callable[[Iterable[Candidate]], Iterator[ArchitectureResult]],
    ) -> Iterator[ArchitectureResult]:
        """Yield the results that are there, then those of the architectures that are left.

        Args:
            split: The split.
            evaluate: Evaluates architectures; its results are kept.
        """
        done = self._read(split.name)[: split.num_architectures]
        remaining = itertools.islice(split.architectures, len(done), None)
        return itertools.chain(done, self._keep(split.name, done, evaluate(remaining)))

    def remove(self) -> None:
        """Remove the files of an evaluation that has ended."""
        for path in self._folder.glob("*.partial.jsonl"):
            path.unlink()

    def _path(self, split: str) -> pathlib.Path:
        return self._folder / f"{split}.partial.jsonl"

    def _read(self, split: str) -> list[ArchitectureResult]:
        try:
            lines = self._path(split).read_text(encoding="utf-8").splitlines(keepends=True)
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        if not lines or lines[0] != self._first_line:
            return []
        results = []
        for line in lines[1:]:
            # A kill can leave half a line at the end.
            try:
                results.append(_parse(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                break
        return results

    def _keep(
        self, split: str, done: list[ArchitectureResult], results: Iterator[ArchitectureResult]
    ) -> Iterator[ArchitectureResult]:
        with self._path(split).open("w", encoding="utf-8") as file:
            file.write(self._first_line)
            file.writelines(map(_line, done))
            for result in results:
                file.write(_line(result))
                file.flush()
                yield result


def _line(result: ArchitectureResult) -> str:
    fields = dataclasses.asdict(result)
    return json.dumps({**fields, _CHECKSUM: _text_checksum(fields)}) + "\n"


def _parse(line: str) -> ArchitectureResult:
    """Return the result in a line; ValueError if it is not as `_line` wrote it."""
    fields = json.loads(line)
    if fields.pop(_CHECKSUM) != _text_checksum(fields):
        raise ValueError("the line is damaged")
    return ArchitectureResult(**fields)


def _text_checksum(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields).encode())


@contextlib.contextmanager
def keep_results(folder: pathlib.Path, identity: dict[str, Any]) -> Generator[EvaluationJournal]:
    """Hold the folder of an evaluation, and keep its results until the context ends without error.

    Args:
        folder: The folder of the results, created if missing.
        identity: See `EvaluationJournal`.

    Yields:
        The journal.

    Raises:
        FolderInUseError: If another process evaluates into the folder.
    """
    with lock_folder(folder):
        journal = EvaluationJournal(folder, identity)
        yield journal
        journal.remove()


def identify(
    config: ExperimentConfig,
    ghn_params: PyTree,
    images: EvaluationImages,
    seed: int,
    random_seed: int | None,
    deepnets: str | None = None,
) -> dict[str, Any]:
    """Describe all that the results of an evaluation depend on.

    Args:
        config: The config of the GHN: its space, its task and its own.
        ghn_params: The hypernetwork's parameters.
        images: The images, with labels.
        seed: Seed of the architectures.
        random_seed: Seed of random parameters.
        deepnets: Folder that the architectures are read from; None draws them.

    Returns:
        Values that JSON can hold; arrays by their checksums.
    """
    sections = config.to_dict()
    return {
        **{name: sections[name] for name in ("space", "ghn", "task")},
        **{"seed": seed, "random_seed": random_seed, "deepnets": deepnets},
        "ghn_params": _checksum(jax.tree.leaves(ghn_params)),
        "images": _checksum([array for batch in images.batches for array in batch]),
    }


def _checksum(arrays: Iterable[Any]) -> int:
    checksum = 0
    for array in arrays:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        checksum = zlib.crc32(content.data, checksum)
    return checksum
