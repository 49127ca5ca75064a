"""Time training steps of a GHN-2 on architectures of an official file, next to the original.

    python benchmarks/train.py [--directory ../shared/reference] [--profile] [--json]

The script times forward and backward passes of the GHN and its target networks, without reading
architectures, augmenting images or updating parameters. If PPUDA names a checkout of
facebookresearch/ppuda and TORCH_PYTHON a Python with torch (this Python by default), the original
runs on exactly the same architectures; its rounds alternate with ours, so that each has the machine
to itself. Two more rounds follow. In one, worker processes read architectures and augment images
as in training, and the script measures how long a step waits for them. In the other, it waits for
every program of the targets, which splits their time into forward and backward.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ghn_jax.architectures import Architecture
from ghn_jax.data import ArraySplit, CropAndFlip, Dataset, Resize, TrainBatches
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks import ghn2
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.programs.cache import enable_compilation_cache
from ghn_jax.targets.plan import Plan, lower
from ghn_jax.tasks import Batch
from ghn_jax.training.meta_batches import MetaBatch, MetaBatchRules, iterate_meta_batches
from ghn_jax.training.workers import Workers

IMAGE_SIZE, NUM_CLASSES = 32, 10
NUM_IMAGES = 10_000
PHASES = ("ghn_forward", "targets", "ghn_backward")

Profile = dict[tuple[str, str], tuple[float, int]]
"""Seconds and number of calls by program and signature."""


class FirstArchitectures:
    """A source that repeats the first architectures of the file, all with the same width.

    Args:
        arguments: The command line's arguments.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._nets = DeepNets1M(arguments.directory, "train", IMAGE_SIZE)
        self._sizes = {"channels": arguments.channels, "fc_size": arguments.fc_size}
        self._num = arguments.num_architectures

    def draw(self, index: int) -> Architecture:
        """Read the architecture at an index."""
        return Architecture.from_official(self._nets.entry(index % self._num), **self._sizes)

    def lower(self, architecture: Architecture) -> Plan:
        """Lower an architecture."""
        return lower(architecture, IMAGE_SIZE, NUM_CLASSES)

    def graph(self, index: int, plan: Plan) -> ArchGraph:
        """Read the graph of an architecture."""
        assert isinstance(plan.architecture, Architecture)
        return self._nets.graph(index % self._num, NUM_CLASSES, architecture=plan.architecture)


def random_images() -> Dataset:
    """Make a data set of random images, of CIFAR-10's size and with its augmentation."""
    rng = np.random.default_rng(0)
    shape = (NUM_IMAGES, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    split = ArraySplit(images, rng.integers(0, NUM_CLASSES, NUM_IMAGES).astype(np.int32))
    return Dataset(
        name="random",
        num_classes=NUM_CLASSES,
        image_size=IMAGE_SIZE,
        num_channels=3,
        mean=(0.5,) * 3,
        std=(0.29,) * 3,
        train=split,
        validation=split,
        test=split,
        train_transform=CropAndFlip(),
        eval_transform=Resize(),
    )


class Steps:
    """Runs and times training steps on the file's architectures.

    Args:
        arguments: The command line's arguments.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.num_architectures = arguments.num_architectures
        self.predictor = Predictor(ghn2(num_classes=NUM_CLASSES))
        self.engine = BlockwiseEngine(num_threads=arguments.num_threads)
        self.ghn_params = self.predictor.init(jax.random.key(0))
        self.num_steps = -(-arguments.num_architectures // arguments.meta_batch_size)
        num_workers = arguments.num_workers
        rules = MetaBatchRules(arguments.meta_batch_size, None, arguments.batch_size)
        source = FirstArchitectures(arguments)
        self._draw = lambda: iterate_meta_batches(source, rules, 0, num_workers)
        self._batches = TrainBatches(random_images(), arguments.batch_size, 0)
        self._num_workers = num_workers
        with contextlib.closing(self._draw()) as meta_batches:
            self._drawn = [next(meta_batches) for _ in range(self.num_steps)]
        self._batch = self._batches.batch(0)

    @property
    def num_compilations(self) -> int:
        """Number of programs compiled so far."""
        return self.predictor.num_compilations + self.engine.num_compilations

    def round(self) -> dict[str, float]:
        """Return each phase's seconds per architecture, with architectures drawn beforehand."""
        return self._round(iter(self._drawn), itertools.repeat(self._batch))

    def live_round(self) -> dict[str, float]:
        """Return the same while workers draw; `waiting` is the time that steps wait for them."""
        num_workers = self._num_workers
        images = Workers(self._batches.batch, 0, num_workers, 2 * num_workers, "images")
        with contextlib.closing(self._draw()) as meta_batches, images:
            self._round(meta_batches, images)  # until the workers have started
            return self._round(meta_batches, images)

    def _round(
        self, meta_batches: Iterator[MetaBatch], images: Iterator[Batch]
    ) -> dict[str, float]:
        seconds = dict.fromkeys(("waiting", *PHASES), 0.0)
        for _ in range(self.num_steps):
            times = [time.perf_counter()]
            (work,), batch = next(meta_batches).work, next(images)
            assert work is not None
            times.append(time.perf_counter())
            prepared = self.predictor.prepare(work.graphs, work.capacity)
            params, pull_back = self.predictor.predict_with_pull_back(self.ghn_params, prepared)
            times.append(time.perf_counter())
            results = self.engine.loss_and_grads(work.plans, params, batch)
            jax.block_until_ready(results)
            times.append(time.perf_counter())
            jax.block_until_ready(pull_back([result.grads for result in results]))
            times.append(time.perf_counter())
            for phase, seconds_taken in zip(seconds, np.diff(times), strict=True):
                seconds[phase] += seconds_taken / self.num_architectures
        return {**seconds, "step": sum(seconds[phase] for phase in PHASES)}

    def profile(self) -> Profile:
        """Return seconds and number of calls by program and signature, over all architectures."""
        total: Profile = defaultdict(lambda: (0.0, 0))

        def observe(program: str, signature: str, seconds: float) -> None:
            so_far, count = total[program, signature]
            total[program, signature] = so_far + seconds, count + 1

        with self.engine.observed(observe):
            self.round()
        return total


class Original:
    """The original implementation in a process of its own, which waits between rounds.

    Args:
        arguments: The command line's arguments.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        python = os.environ.get("TORCH_PYTHON", sys.executable)
        script = Path(__file__).with_name("original.py")
        command = [python, str(script), f"--directory={arguments.directory}"]
        for name in (
            *("num_architectures", "meta_batch_size", "batch_size"),
            *("channels", "fc_size"),
        ):
            command.append(f"--{name}={getattr(arguments, name)}")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.available = self._stdout.readline().strip() == "ready"

    def round(self, split: bool = False) -> dict[str, float]:
        """Run a round and return its seconds per architecture."""
        self._stdin.write("split\n" if split else "round\n")
        self._stdin.flush()
        return json.loads(self._stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._stdin.close()
        self._process.wait()


def main() -> None:
    """Print the tables, and a JSON object if requested."""
    arguments = parse_arguments()
    if arguments.compilation_cache_dir:
        enable_compilation_cache(arguments.compilation_cache_dir)
    console = Console(stderr=arguments.json)
    steps = Steps(arguments)
    start = time.perf_counter()
    steps.round()
    first = {"seconds": time.perf_counter() - start, "compilations": steps.num_compilations}
    original = Original(arguments) if os.environ.get("PPUDA") else None
    with contextlib.ExitStack() as stack:
        rounds, original_rounds = [], []
        if original is not None:
            stack.callback(original.close)
            if original.available:
                original.round()
            else:
                console.print("[yellow]the original did not start; no ratio[/yellow]")
        for index in range(arguments.num_rounds):
            rounds.append(steps.round())
            if original is not None and original.available:
                original_rounds.append(original.round(split=index == 0))
        profile, live = steps.profile(), steps.live_round()
    summary = summarize(steps, first, rounds, original_rounds, profile, live)
    print_summary(console, summary)
    if arguments.profile:
        print_profile(console, profile, arguments)
    if arguments.json:
        print(json.dumps(summary))


def summarize(
    steps: Steps,
    first: dict[str, Any],
    rounds: list[dict[str, float]],
    original_rounds: list[dict[str, float]],
    profile: Profile,
    live: dict[str, float],
) -> dict[str, Any]:
    """Summarize the rounds by their medians, under the names that our measurements use."""
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    parts = {"forward": 0.0, "backward": 0.0}
    for (program, _), (seconds, _) in profile.items():
        parts[program] += seconds
    share = parts["forward"] / sum(parts.values())
    summary = {
        "seconds_per_architecture": medians["step"],
        **{f"seconds_{name}": medians[name] for name in PHASES},
        "seconds_targets_forward": share * medians["targets"],
        "seconds_targets_backward": (1 - share) * medians["targets"],
        "seconds_waiting": live["waiting"],
        "waiting_share": live["waiting"] / (live["waiting"] + live["step"]),
        "ghn_share": 1 - medians["targets"] / medians["step"],
        "compilations_first": first["compilations"],
        "compilations_steady": steps.num_compilations - first["compilations"],
        "first_round_seconds": first["seconds"],
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if original_rounds:
        step = statistics.median(r["step"] for r in original_rounds)
        ghn = original_rounds[0]["ghn_forward"] + original_rounds[0]["ghn_backward"]
        ours = medians["ghn_forward"] + medians["ghn_backward"]
        summary |= {
            "original_seconds_per_architecture": step,
            "ratio_to_original": medians["step"] / step,
            "original_seconds_ghn": ghn,
            "ghn_ratio_to_original": ours / ghn,
        }
    return summary


def print_summary(console: Console, summary: dict) -> None:
    """Print one row per number."""
    table = Table(title=f"{os.cpu_count()} cores, {jax.default_backend()}, JAX {jax.__version__}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in summary.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(table)


def print_profile(console: Console, total: Profile, arguments: argparse.Namespace) -> None:
    """Print the time per architecture by kind of block, and the costliest signatures."""
    num_architectures = arguments.num_architectures
    by_kind: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (program, signature), (seconds, count) in total.items():
        kind = signature.split(" ")[0]
        by_kind[kind][program] += seconds / num_architectures
        by_kind[kind]["calls"] += count / 2 / num_architectures
    table = Table(title="ms per architecture by block")
    for column in ("block", "calls", "forward", "backward", "both"):
        table.add_column(column, justify="left" if column == "block" else "right")
    both = lambda kind: by_kind[kind]["forward"] + by_kind[kind]["backward"]  # noqa: E731
    for kind in sorted(by_kind, key=both, reverse=True):
        row = by_kind[kind]
        times = (row["forward"], row["backward"], both(kind))
        table.add_row(kind, f"{row['calls']:.1f}", *(f"{1e3 * seconds:.1f}" for seconds in times))
    console.print(table)
    table = Table(title="costliest programs")
    for column in ("signature", "program", "calls", "ms each", "ms per architecture"):
        table.add_column(column, justify="left" if column == "signature" else "right")
    for (program, signature), (seconds, count) in sorted(
        total.items(), key=lambda item: item[1][0], reverse=True
    )[: arguments.num_rows]:
        per = 1e3 * seconds / num_architectures
        table.add_row(signature, program, str(count), f"{1e3 * seconds / count:.2f}", f"{per:.1f}")
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parents[2] / "shared" / "reference"
    parser.add_argument(
        "--directory", default=str(default), help="Folder with deepnets1m_train.hdf5."
    )
    parser.add_argument(
        "--num_architectures", type=int, default=24, help="Number of architectures."
    )
    parser.add_argument("--meta_batch_size", type=int, default=4, help="Architectures per step.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images per batch.")
    parser.add_argument("--channels", type=int, default=32, help="Width C of the networks.")
    parser.add_argument("--fc_size", type=int, default=128, help="Width of their hidden layers.")
    parser.add_argument("--num_threads", type=int, default=2, help="Architectures run at a time.")
    parser.add_argument("--num_workers", type=int, default=2, help="Worker processes.")
    parser.add_argument("--num_rounds", type=int, default=3, help="Number of timed rounds.")
    parser.add_argument("--compilation_cache_dir", help="Folder of compiled programs.")
    parser.add_argument("--profile", action="store_true", help="Print the time of each block.")
    parser.add_argument("--num_rows", type=int, default=40, help="Programs in the profile.")
    parser.add_argument("--json", action="store_true", help="Print JSON on the last line.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
