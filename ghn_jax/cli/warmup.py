"""Compile ahead of time what training will need, and keep it on disk for later runs.

    ghn-jax warmup --config cifar10_ghn2
        --config.training.compilation_cache_dir=~/.cache/ghn_jax

Draws architectures from the config's space and compiles the programs that cover 99% of their calls
and of the GHN's calls for them. Compilation runs in processes of `training.num_compile_threads`
threads each, by default as many as the cores allow. Rare programs are compiled when training needs
them.
"""

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import queue
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import rich.progress
from absl import flags

from ghn_jax.cli import config_flags
from ghn_jax.configuration import limits
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.hypernetworks.preparation import PreparedGraphs
from ghn_jax.programs.cache import enable_compilation_cache
from ghn_jax.programs.table import Selection
from ghn_jax.targets.plan import Plan
from ghn_jax.training.architecture_sources import create_source
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.meta_batches import MetaBatchRules, iterate_meta_batches
from ghn_jax.training.trainer import create_task

flags.DEFINE_integer(
    "num_architectures",
    500,
    "Number of architectures whose calls are counted.",
    lower_bound=1,
    upper_bound=limits.COUNT,
)
flags.DEFINE_float("coverage", 0.99, "Share of all calls that the compiled programs cover.")
flags.DEFINE_integer(
    "num_processes",
    None,
    "Number of processes that compile; by default one per training.num_compile_threads cores.",
    lower_bound=1,
    upper_bound=limits.NUM_PROCESSES,
)
FLAGS = flags.FLAGS


def main(config: ExperimentConfig, workdir: str) -> None:
    """Draw architectures, count their blocks and compile the most frequent ones."""
    folder = config.training.compilation_cache_dir or str(Path(workdir) / "compiled")
    num_cores = len(os.sched_getaffinity(0))
    num_processes = FLAGS.num_processes or max(num_cores // config.training.num_compile_threads, 1)
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        concurrent.futures.ProcessPoolExecutor(num_processes, context) as pool,
        rich.progress.Progress() as progress,
    ):
        done = manager.Queue()
        numbers = (FLAGS.num_architectures, FLAGS.coverage)
        shares = [(index, num_processes) for index in range(num_processes)]
        futures = [pool.submit(compile_share, config, folder, *numbers, s, done) for s in shares]
        task = progress.add_task("compiling", total=None)
        totals: list[int] = []
        while not all(future.done() for future in futures) or not done.empty():
            try:
                total = done.get(timeout=0.2)
            except queue.Empty:
                continue
            if total is None:
                progress.advance(task)
            else:
                totals.append(total)
                progress.update(task, total=sum(totals) if len(totals) == 2 * len(shares) else None)
        results = [future.result() for future in futures]
    num_signatures, num_programs = (sum(numbers) for numbers in zip(*results, strict=True))
    print(f"{num_signatures} signatures, {num_programs} programs in {folder}")


def compile_share(
    config: ExperimentConfig,
    folder: str,
    num_architectures: int,
    coverage: float,
    share: tuple[int, int],
    done: "queue.Queue[int | None]",
) -> tuple[int, int]:
    """Compile one process's share of the GHN's programs, then of the targets' programs.

    For each of the two, puts the number of programs on `done`, then None for each that is done.
    """
    training = config.training
    enable_compilation_cache(folder)
    engine = BlockwiseEngine(
        create_task(config).loss_fn,
        num_compile_threads=training.num_compile_threads,
        compute_dtype=training.compute_dtype,
    )
    predictor = Predictor(config.ghn, training.num_compile_threads)
    source = create_source(config)
    num_devices = training.num_devices or jax.local_device_count()
    rules = MetaBatchRules(
        training.meta_batch_size, training.max_nodes, config.data.batch_size, num_devices
    )
    num_steps = max(num_architectures // training.meta_batch_size, 1)
    plans: list[Plan] = []

    def prepare_all() -> Iterator[PreparedGraphs]:
        # One step at a time, since each graph takes half a megabyte.
        batches = iterate_meta_batches(source, rules, 0, num_workers=0)
        with contextlib.closing(batches) as meta_batches:
            for meta_batch in itertools.islice(meta_batches, num_steps):
                for part in filter(None, meta_batch.work):
                    plans.extend(part.plans)
                    yield predictor.prepare(part.graphs, part.capacity)

    def progress(keys: Iterable[Any], total: int) -> Iterator[Any]:
        done.put(total)
        for key in keys:
            yield key
            done.put(None)

    selection = Selection(coverage=coverage, share=share, progress=progress)
    num_signatures = predictor.warm_up(prepare_all(), **selection)
    num_signatures += engine.warm_up(
        plans, config.data.batch_size, drops=training.target_dropout, **selection
    )
    return num_signatures, engine.num_compilations + predictor.num_compilations


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    config_flags.run(main, argv)
