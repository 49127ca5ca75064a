"""Fine-tune networks from several initialisations, and compare.

In: networks, initialisations, a grid of learning rates and seeds. Out: a folder with one run for
each combination, the rate chosen on validation images for each initialisation, its accuracy on test
images as mean and standard error over seeds, a table and learning curves.

A run that is done is not done again, and one that was interrupted goes on from its checkpoint: the
same call, or one with more architectures, initialisations, rates or seeds, finishes the comparison.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
import rich.progress
import rich.table

from ghn_jax.data import Dataset, take_shots
from ghn_jax.finetune.comparison_report import RESULTS, Row, Run, draw_curves, markdown_table
from ghn_jax.finetune.config import FinetuneConfig
from ghn_jax.finetune.initialization import NetworkInitializer
from ghn_jax.finetune.network_training import DivergedError, NetworkTrainer
from ghn_jax.finetune.postprocessing import AUTO

if TYPE_CHECKING:
    from ghn_jax.pretrained import GHN

_RESULT = "result.json"
_TABLE = "table.md"


class Comparison:
    """Runs the comparison in a folder.

    Args:
        config: What is compared, and how each run trains.
        dataset: Images; trained on are the first `config.num_shots` of each class.
        ghn: Predicts; None if only random initialisation is asked for.
        workdir: Folder of the comparison.
        ghn_name: What the GHN is called in the results.

    Raises:
        ValueError: If a GHN is needed and there is none, or a class has too few images.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        dataset: Dataset,
        ghn: GHN | None,
        workdir: str | pathlib.Path,
        ghn_name: str = "",
    ) -> None:
        if ghn is None and set(config.inits) != {"random"}:
            raise ValueError(
                f"ghn is missing, expected a GHN for inits = {', '.join(config.inits)}"
            )
        if config.num_shots is not None:
            dataset = take_shots(dataset, config.num_shots)
        self._config, self._dataset, self._ghn = config, dataset, ghn
        self._ghn_name = ghn_name
        self._workdir = pathlib.Path(workdir)

    def run(self, modules: Mapping[str, nn.Module]) -> list[Row]:
        """Make all runs that are not done yet.

        Args:
            modules: Flax module by the name of its architecture.

        Returns:
            A row for each architecture and initialisation.
        """
        config = self._config
        # Before the first run: what is wrong with the last architecture is told at once.
        made = {
            name: (self._make_initializer(module), NetworkTrainer(module, self._dataset, config))
            for name, module in modules.items()
        }
        num_runs = len(made) * len(config.inits) * len(config.rates) * config.num_seeds
        columns = (
            rich.progress.TextColumn("[bold]run {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeRemainingColumn(),
        )
        rows = []
        with rich.progress.Progress(*columns) as progress:
            task = progress.add_task("", total=num_runs)
            for name, (initializer, trainer) in made.items():
                for init in config.inits:
                    rows.append(
                        self._compare_rates(name, init, initializer, trainer, progress, task)
                    )
        self._write(rows)
        return rows

    def _make_initializer(self, module: nn.Module) -> NetworkInitializer:
        config = self._config
        return NetworkInitializer(
            module,
            self._ghn,
            self._dataset.image_size,
            self._dataset.num_classes,
            classifier=config.classifier,
            noise_beta=config.noise_beta,
            first_layer=AUTO if config.first_layer is None else config.first_layer,
        )

    def _compare_rates(self, name, init, initializer, trainer, progress, task) -> Row:
        config = self._config
        first_seed = config.training.seed
        runs: dict[float, list[Run]] = {rate: [] for rate in config.rates}
        for rate in config.rates:
            for seed in range(first_seed, first_seed + config.num_seeds):
                progress.update(task, description=f"{name} {init} rate {rate:g} seed {seed}")
                run = self._one(name, init, initializer, trainer, rate, seed)
                runs[rate].append(run)
                progress.advance(task)
                if not progress.console.is_terminal:
                    progress.console.print(
                        f"{name}  {init}  rate {rate:g}  seed {seed}  validation top-1"
                        f" {100 * run.validation:.2f}%",
                        highlight=False,
                    )
        best = max(config.rates, key=lambda rate: np.mean([r.validation for r in runs[rate]]))
        chosen = [self._with_test(name, init, initializer, trainer, run) for run in runs[best]]
        return Row(name, init, best, chosen)

    def _folder(self, name: str, init: str, rate: float, seed: int) -> pathlib.Path:
        safe = name.replace("/", "_").replace(":", "_")
        return self._workdir / "runs" / safe / init / f"rate_{rate:g}" / f"seed_{seed}"

    def _one(self, name, init, initializer, trainer, rate, seed) -> Run:
        folder = self._folder(name, init, rate, seed)
        record = self._record(init)
        done = _read_result(folder / _RESULT, record)
        if done is not None:
            return done
        variables = initializer.make(init, jax.random.key(seed))
        try:
            result = trainer.run(
                variables, seed=seed, learning_rate=rate, workdir=folder, quiet=True
            )
            curve = [(point.step, point.accuracy) for point in result.curve]
        except DivergedError:
            curve = []
        run = Run(seed, rate, curve)
        _write_result(folder / _RESULT, run, record)
        return run

    def _with_test(self, name, init, initializer, trainer, run: Run) -> Run:
        """The run with its accuracy on test images, computed from its last checkpoint."""
        if run.test is not None:
            return run
        folder = self._folder(name, init, run.learning_rate, run.seed)
        accuracy = 0.0
        if run.curve:
            # Nothing is left to train: the variables are those of the checkpoint.
            result = trainer.run(
                initializer.make(init, jax.random.key(run.seed)),
                seed=run.seed,
                learning_rate=run.learning_rate,
                workdir=folder,
                quiet=True,
            )
            accuracy = trainer.evaluate(result.variables, "test")
        run = run._replace(test=accuracy)
        _write_result(folder / _RESULT, run, self._record(init))
        return run

    def _record(self, init: str) -> dict[str, Any]:
        """What a run's result depends on, besides what its folder's name says."""
        config = self._config.to_dict()
        record = {name: config[name] for name in ("data", "training", "num_shots")}
        record["optimizer"] = {**config["optimizer"], "learning_rate": None}
        record["training"] = {**record["training"], "seed": None}
        if init != "random":
            record |= {"ghn": self._ghn_name, "classifier": config["classifier"]}
        if init in ("ghn-noise", "ghn-orth"):
            record |= {name: config[name] for name in ("noise_beta", "first_layer")}
        return record

    def _write(self, rows: Sequence[Row]) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        summary = {
            "config": self._config.to_dict(),
            "ghn": self._ghn_name,
            "rows": [
                {**row._asdict(), "runs": [run._asdict() for run in row.runs]} for row in rows
            ],
        }
        _write_whole(self._workdir / RESULTS, json.dumps(summary, indent=1) + "\n")
        _write_whole(self._workdir / _TABLE, markdown_table(rows))
        draw_curves(rows, self._workdir / "curves.png")


def _read_result(path: pathlib.Path, record: dict[str, Any]) -> Run | None:
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    was = result.pop("record")
    now = json.loads(json.dumps(record))
    if was != now:
        names = [name for name in now if was.get(name) != now[name]]
        raise ValueError(
            f"{path.parent} holds a run with another {', '.join(names)}: take another work"
            " directory, or remove it"
        )
    return Run(**{**result, "curve": [(int(step), value) for step, value in result["curve"]]})


def _write_result(path: pathlib.Path, run: Run, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, json.dumps({**run._asdict(), "record": record}) + "\n")


def _write_whole(path: pathlib.Path, text: str) -> None:
    """Write a file such that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
