"""Write a split of generated architectures: `ghn-jax generate --split val --output data`.

In: a split, a number and a seed. Out: `deepnets1m_<split>.hdf5` and its meta file, in the published
format, for training on a fixed set or for sharing one. Training does not need them, since it draws
architectures as it goes.

Architecture i depends only on the seed and i, so the number of workers does not change the files.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import time
from collections.abc import Generator, Sequence
from typing import NoReturn

from absl import flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ghn_jax.cli.command_line import run_program
from ghn_jax.configuration import limits
from ghn_jax.deepnets1m.writer import (
    DeepNets1MWriter,
    Record,
    make_record,
    merge_evaluation_splits,
)
from ghn_jax.sampling import SPLITS, SpaceConfig, sample_architecture

_SPLIT = flags.DEFINE_enum(
    "split", "train", tuple(SPLITS), "Split whose rules the architectures follow."
)
_OUTPUT = flags.DEFINE_string("output", "data", "Folder for the two files; created if missing.")
_NUM_ARCHITECTURES = flags.DEFINE_integer(
    "num_architectures",
    1000,
    "Number of architectures to write; published splits have 1000000 for training, 500 for val and"
    " test, and 100 otherwise.",
    lower_bound=1,
    upper_bound=limits.COUNT,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the stream of architectures.", lower_bound=0, upper_bound=limits.SEED
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    1,
    "Number of processes that draw architectures; it does not affect the result.",
    lower_bound=1,
    upper_bound=limits.NUM_PROCESSES,
)
_MERGE_EVAL = flags.DEFINE_bool(
    "merge_eval",
    False,
    "Whether to then copy all evaluation splits in the folder to deepnets1m_eval.hdf5, where the"
    " original expects them.",
)

# The records of this many architectures are in memory at a time: a few tens of megabytes.
_CHUNK_SIZE = 512


class _SpeedColumn(ProgressColumn):
    """Shows the speed in architectures per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} architectures/s")


def draw_record(space: SpaceConfig, seed: int, index: int) -> Record:
    """Draw an architecture and describe it.

    Args:
        space: the space to draw from.
        seed: seed of the stream.
        index: index of the architecture.

    Returns:
        The architecture's record.
    """
    return make_record(sample_architecture(space, seed, index), space.split)


def draw_records(
    space: SpaceConfig, seed: int, count: int, num_workers: int
) -> Generator[Record, None, None]:
    """Draw architectures 0..count-1, in order.

    Args:
        space: the space to draw from.
        seed: seed of the stream.
        count: number of architectures.
        num_workers: number of processes; 1 draws in this one.

    Yields:
        The record of each architecture.
    """
    draw_fn = functools.partial(draw_record, space, seed)
    if num_workers == 1:
        yield from map(draw_fn, range(count))
        return
    # A forked process would lack JAX's threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context) as pool:
        for start in range(0, count, _CHUNK_SIZE):
            chunk = range(start, min(start + _CHUNK_SIZE, count))
            yield from pool.map(draw_fn, chunk, chunksize=_CHUNK_SIZE // (4 * num_workers) + 1)


def main() -> None:
    """Write the split that the flags describe."""
    console = Console()
    count, split = _NUM_ARCHITECTURES.value, _SPLIT.value
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _SpeedColumn(),
        TimeRemainingColumn(),
    )
    writer = DeepNets1MWriter(_OUTPUT.value, split)
    records = draw_records(SpaceConfig(split=split), _SEED.value, count, _NUM_WORKERS.value)
    start = time.perf_counter()
    with contextlib.closing(records), Progress(*columns, console=console) as progress, writer:
        for record in progress.track(records, total=count, description=split):
            writer.write(record)
    speed = count / (time.perf_counter() - start)
    console.print(
        f"wrote {count} architectures to {writer.path}, {speed:.0f} architectures/s", soft_wrap=True
    )
    if _MERGE_EVAL.value:
        console.print(f"wrote {merge_evaluation_splits(_OUTPUT.value)}", soft_wrap=True)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    run_program(main, argv)
