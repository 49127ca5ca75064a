"""Measure what changes to the recipe of `digits` are worth, with several seeds.

    python benchmarks/recipe.py --results docs/recipe.jsonl --settings rate_4e-3 deeper --seeds 0 1
    python benchmarks/recipe.py --results docs/recipe.jsonl          # only print the table

A setting is a set of changes to `launch/configs/digits.py` as it was before the recipe was studied
(`BASE`). Each run is trained, evaluated on unseen architectures of every split, and appended to the
results as one JSON line with its settings, losses, programs and seconds; what is there already is
not run again. Several processes may share one file: `--settings` and `--seeds` divide the work.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ghn_jax.configs import digits
from rich.console import Console
from rich.table import Table

from ghn_jax.cli.config_dict import build_config
from ghn_jax.engine.blockwise import LossAndGrads
from ghn_jax.evaluation.training_run import evaluate_run
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train
from ghn_jax.training.optimizers import create_optimizer
from ghn_jax.training.trainer import Trainer

SPLITS = (("test", 50), ("wide", 20), ("deep", 20), ("dense", 20), ("bnfree", 20))

Changes = dict[str, Any]
"""From the dotted name of a field of the config to its value."""

BASE: Changes = {
    "optimizer.learning_rate": 2e-3,
    "optimizer.schedule": "step",
    "optimizer.milestones": (1000,),
    "optimizer.warmup_steps": 0,
    "training.num_steps": 1200,
    "curriculum.num_cells": (),
}
"""The recipe until November 2026."""

SHALLOW: Changes = {
    "training.num_steps": 1500,
    "curriculum.num_cells": ((0, 4, 6),),
    "optimizer.milestones": (1300,),
}
"""Networks of 4 to 6 cells only."""

LINEAR: Changes = {
    "optimizer.schedule": "linear",
    "optimizer.milestones": (),
    "optimizer.warmup_steps": 50,
}
RATE: Changes = SHALLOW | LINEAR | {"optimizer.learning_rate": 4e-3}
GROWING: Changes = {"curriculum.num_cells": ((0, 1, 3), (500, 2, 5), (1500, 4, 8))}
LONG: Changes = {"training.num_steps": 3000}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A recipe.

    Attributes:
        changes: What differs from `BASE`.
        gradients: How each network's gradients are scaled before they are averaged: "none",
            "network" (to norm 1) or "tensor" (each tensor's to the norm of the tensor, then the
            network's to norm 1).
        decay_share: Share of the steps over which the rate falls linearly to 0, instead of the
            config's schedule.
    """

    changes: Changes
    gradients: str = "none"
    decay_share: float | None = None


SETTINGS: dict[str, Setting] = {
    "before": Setting({}),
    "shallow": Setting(SHALLOW),
    "linear": Setting(SHALLOW | LINEAR),
    "late_decay": Setting(SHALLOW | LINEAR, decay_share=0.2),
    "rate_4e-3": Setting(RATE),
    "rate_8e-3": Setting(RATE | {"optimizer.learning_rate": 8e-3}),
    "unit_gradients": Setting(SHALLOW | LINEAR, "network"),
    "unit_gradients_late_decay": Setting(SHALLOW | LINEAR, "network", 0.2),
    "unit_gradients_8e-3": Setting(RATE | {"optimizer.learning_rate": 8e-3}, "network"),
    "unit_tensor_gradients": Setting(RATE, "tensor"),
    "growing": Setting(RATE | GROWING),
    "growing_to_18": Setting(RATE | {"curriculum.num_cells": ((0, 4, 6), (1500, 4, 18))}),
    "long": Setting(RATE | LONG),
    "long_growing": Setting(
        RATE | LONG | {"curriculum.num_cells": ((0, 1, 3), (1000, 2, 6), (3000, 4, 12))}
    ),
    "long_growing_to_18": Setting(
        RATE | LONG | {"curriculum.num_cells": ((0, 1, 3), (1500, 3, 6), (3000, 4, 18))}
    ),
    "long_growing_clipped": Setting(
        RATE
        | LONG
        | {
            "curriculum.num_cells": ((0, 1, 3), (1000, 2, 6), (3000, 4, 12)),
            "optimizer.clip_norm": 0.5,
        }
    ),
}
"""The recipes that were measured, by name."""


def setting_config(setting: Setting, seed: int, threads: int, cache: str | None) -> Any:
    """Return the config of a run."""
    config = digits.get_config()
    runtime: Changes = {
        "training.seed": seed,
        "training.log_every": 100,
        "training.checkpoint_every": 10_000,
        "training.num_threads": threads,
        "training.num_compile_threads": threads,
        "evaluation.splits": SPLITS,
        "evaluation.with_random": False,
    }
    if cache is not None:
        runtime["training.compilation_cache_dir"] = cache
    for name, value in (BASE | setting.changes | runtime).items():
        *path, field = name.split(".")
        section = config
        for part in path:
            section = section[part]
        section[field] = value
    return build_config(config)


class ScaledGradients:
    """An engine whose gradients are scaled network by network.

    Args:
        engine: The engine that computes them.
        rule: See `Setting.gradients`.
    """

    def __init__(self, engine: Any, rule: str) -> None:
        self._engine, self._rule = engine, rule

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def loss_and_grads(self, plans: Any, params: Sequence[Any], *rest: Any) -> list[LossAndGrads]:
        """Compute losses and scaled gradients."""
        results = self._engine.loss_and_grads(plans, params, *rest)
        return [self._scale(*pair) for pair in zip(results, params, strict=True)]

    def _scale(self, result: LossAndGrads, params: Sequence[Any]) -> LossAndGrads:
        grads = [np.asarray(grad) for grad in result.grads]
        if self._rule == "tensor":
            pairs = zip(grads, params, strict=True)
            grads = [grad * _ratio(float(np.linalg.norm(p)), grad) for grad, p in pairs]
        total = float(np.sqrt(sum(np.square(np.linalg.norm(grad)) for grad in grads)))
        if not np.isfinite(total) or total == 0:
            return result
        return LossAndGrads(result.loss, [grad / np.float32(total) for grad in grads])


def _ratio(norm: float, grad: np.ndarray) -> np.float32:
    own = float(np.linalg.norm(grad))
    return np.float32(norm / own if own else 0.0)


def _late_decay(config: ExperimentConfig, share: float) -> optax.GradientTransformation:
    """The config's optimizer with a rate that is constant and then falls linearly to 0."""
    steps = config.training.num_steps
    constant = dataclasses.replace(config.optimizer, schedule="constant")
    start = round((1 - share) * steps)
    factor = optax.linear_schedule(1.0, 0.0, steps - start, transition_begin=start)
    return optax.chain(create_optimizer(constant, steps), optax.scale_by_schedule(factor))


def run(name: str, seed: int, threads: int, cache: str | None) -> dict[str, Any]:
    """Train and evaluate one setting, and return its line of the results."""
    setting = SETTINGS[name]
    config = setting_config(setting, seed, threads, cache)
    parts: dict[str, Any] = {}
    if setting.decay_share is not None:
        parts["optimizer"] = _late_decay(config, setting.decay_share)
    trainer = Trainer(config, **parts)
    if setting.gradients != "none":
        for replica in trainer.replicas:
            replica.engine = ScaledGradients(replica.engine, setting.gradients)  # type: ignore
    print(f"{name}, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as workdir:
        start = time.perf_counter()
        trainer, state = train(config, workdir, trainer=trainer)
        trained = round(time.perf_counter() - start, 1)
        metrics = read(Path(workdir) / "metrics.jsonl")
    summaries = evaluate_run(trainer, state, config.evaluation)
    accuracy = {s.split: round(100 * next(iter(s.metrics.values())).mean, 2) for s in summaries}
    return {
        "setting": name,
        "seed": seed,
        "top1": accuracy,
        "seconds_of_training": trained,
        "compilations": trainer.num_compilations,
        "metrics": metrics,
        "jax": jax.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "changes": BASE | setting.changes,
        "gradients": setting.gradients,
        "decay_share": setting.decay_share,
    }


def read(results: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; one that is missing has none."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def append(results: Path, line: Mapping[str, Any]) -> None:
    """Append a line, one process at a time."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


def tabulate(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return means over seeds, with the lowest and highest of `test`."""
    table = Table(title="predicted top-1 in %, means over seeds")
    for column in ("setting", "seeds", "steps", *(split for split, _ in SPLITS), "test, range"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for name in SETTINGS:
        own = [line for line in lines if line["setting"] == name]
        if not own:
            continue
        means = [statistics.mean(line["top1"][split] for line in own) for split, _ in SPLITS]
        test = [line["top1"]["test"] for line in own]
        steps = own[0]["changes"]["training.num_steps"]
        row = (*(f"{mean:.1f}" for mean in means), f"{min(test):.1f} to {max(test):.1f}")
        table.add_row(name, str(len(own)), str(steps), *row)
    return table


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="JSON lines to add to.")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=[], metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--num_threads", type=int, default=2, help="Networks run at a time.")
    parser.add_argument("--cache", help="Folder of compiled programs kept between runs.")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name in arguments.settings:
            done = {(line["setting"], line["seed"]) for line in read(arguments.results)}
            if (name, seed) not in done:
                line = run(name, seed, arguments.num_threads, arguments.cache)
                append(arguments.results, line)
    Console().print(tabulate(read(arguments.results)))


if __name__ == "__main__":
    main()
