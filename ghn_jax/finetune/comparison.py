"""Fine-tune networks from several initialisations and compare them.

In: networks, initialisations, a grid of learning rates and seeds. Out: a folder with one run for
each combination; for each initialisation, the learning rate chosen on validation images and its
accuracy on test images, as mean and standard error over seeds; a table and learning curves.

Finished runs are not repeated and interrupted ones continue from their checkpoints, so the same
call, or one with more architectures, initialisations, rates or seeds, completes the comparison.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from ghn_jax.configuration.validation import check_instance, shorten
from ghn_jax.data import Dataset, check_classes, take_shots
from ghn_jax.evaluation.report import write_whole
from ghn_jax.finetune.comparison_report import (
    ComparisonProgress,
    Row,
    RunResult,
    parse_run,
    write_comparison,
)
from ghn_jax.finetune.config import FinetuneConfig
from ghn_jax.finetune.initialization import NetworkInitializer
from ghn_jax.finetune.network_training import DivergedError, NetworkResult, NetworkTrainer
from ghn_jax.finetune.postprocessing import AUTO
from ghn_jax.training.folder_lock import lock_folder

if TYPE_CHECKING:
    from ghn_jax.pretrained import GHN

_RESULT = "result.json"


class _Start(NamedTuple):
    """The starting point shared by the runs of a row."""

    architecture: str
    init: str
    initializer: NetworkInitializer
    trainer: NetworkTrainer

    @property
    def name(self) -> str:
        return f"{self.architecture}  {self.init}"


class Comparison:
    """Runs the comparison in a folder.

    Args:
        config: What is compared, and how each run trains.
        dataset: The images; the first `config.num_shots` of each class are used for training.
        ghn: The GHN that predicts parameters; None if only random initialisation is requested.
        workdir: Folder of the comparison.
        ghn_name: The GHN's name in the results.

    Raises:
        ValueError: If `ghn` is None but needed, or a class has too few images.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        dataset: Dataset,
        ghn: GHN | None,
        workdir: str | pathlib.Path,
        ghn_name: str = "",
    ) -> None:
        check_instance("config", config, FinetuneConfig, "a FinetuneConfig")
        check_instance("dataset", dataset, Dataset, "a ghn_jax.data.Dataset")
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
        """Make all runs that are not finished yet.

        Args:
            modules: Flax modules by the names of their architectures.

        Returns:
            A row for each architecture and initialisation.

        Raises:
            FolderInUseError: If another process makes the runs.
        """
        # Prepare all architectures before the first run, so that a bad one is reported at once.
        prepared = {name: self._prepare(module) for name, module in modules.items()}
        inits = self._config.inits
        starts = [_Start(name, init, *parts) for name, parts in prepared.items() for init in inits]
        with lock_folder(self._workdir):
            return self._run(starts)

    def _run(self, starts: Sequence[_Start]) -> list[Row]:
        config = self._config
        with ComparisonProgress(len(starts) * len(config.rates) * config.num_seeds) as progress:
            rows = [
                self._choose(start, progress.follow(start.name, self._tune(start)))
                for start in starts
            ]
        write_comparison(self._workdir, rows, config.to_dict(), self._ghn_name)
        return rows

    def _prepare(self, module: nn.Module) -> tuple[NetworkInitializer, NetworkTrainer]:
        config = self._config
        initializer = NetworkInitializer(
            module,
            self._ghn,
            self._dataset.image_size,
            check_classes(self._dataset),
            num_channels=self._dataset.num_channels,
            classifier=config.classifier,
            noise_beta=config.noise_beta,
            first_layer=AUTO if config.first_layer is None else config.first_layer,
        )
        return initializer, NetworkTrainer(module, self._dataset, config)

    def _tune(self, start: _Start) -> Iterator[RunResult]:
        """Yield the result for each learning rate and seed, from an earlier run or a new one."""
        first_seed = self._config.training.seed
        for rate in self._config.rates:
            for seed in range(first_seed, first_seed + self._config.num_seeds):
                path, record = self._folder(start, rate, seed) / _RESULT, self._record(start.init)
                result = read_result(path, record)
                if result is None:
                    result = RunResult(seed, rate, self._train(start, rate, seed))
                    _write_result(path, result, record)
                yield result

    def _train(self, start: _Start, rate: float, seed: int) -> list[tuple[int, float]]:
        """Make one run and return its curve, which is empty if the loss was not finite."""
        try:
            curve = self._run_network(start, rate, seed).curve
        except DivergedError:
            return []
        return [(point.step, point.accuracy) for point in curve]

    def _choose(self, start: _Start, results: Iterable[RunResult]) -> Row:
        """Choose the rate that is best on validation images, and measure it on test images."""
        by_rate: dict[float, list[RunResult]] = {}
        for result in results:
            by_rate.setdefault(result.learning_rate, []).append(result)
        best = max(by_rate, key=lambda rate: np.mean([run.validation for run in by_rate[rate]]))
        runs = [self._with_test(start, result) for result in by_rate[best]]
        return Row(start.architecture, start.init, best, runs)

    def _with_test(self, start: _Start, result: RunResult) -> RunResult:
        """Add the accuracy on test images, computed from the run's last checkpoint."""
        if result.test is not None:
            return result
        rate, seed, accuracy = result.learning_rate, result.seed, 0.0
        if result.curve:
            # Training is finished, so this only restores the variables from the checkpoint.
            trained = self._run_network(start, rate, seed).variables
            accuracy = start.trainer.evaluate(trained, "test")
        result = result._replace(test=accuracy)
        _write_result(self._folder(start, rate, seed) / _RESULT, result, self._record(start.init))
        return result

    def _run_network(self, start: _Start, rate: float, seed: int) -> NetworkResult:
        return start.trainer.run(
            start.initializer.make(start.init, jax.random.key(seed)),
            seed=seed,
            learning_rate=rate,
            workdir=self._folder(start, rate, seed),
            quiet=True,
        )

    def _folder(self, start: _Start, rate: float, seed: int) -> pathlib.Path:
        safe = start.architecture.replace("/", "_").replace(":", "_")
        return self._workdir / "runs" / safe / start.init / f"rate_{rate:g}" / f"seed_{seed}"

    def _record(self, init: str) -> dict[str, Any]:
        """Return what a run's result depends on, besides what the name of its folder says."""
        config = self._config.to_dict()
        record = {name: config[name] for name in ("data", "training", "num_shots")}
        record["optimizer"] = {**config["optimizer"], "learning_rate": None}
        record["training"] = {**record["training"], "seed": None}
        if init != "random":
            record |= {"ghn": self._ghn_name, "classifier": config["classifier"]}
        if init in ("ghn-noise", "ghn-orth"):
            record |= {name: config[name] for name in ("noise_beta", "first_layer")}
        return record


def read_result(path: pathlib.Path, record: dict[str, Any]) -> RunResult | None:
    """Read the result of an earlier run.

    Args:
        path: The file.
        record: What the result depends on.

    Returns:
        The result; None if there is no file.

    Raises:
        ValueError: If the file is damaged, or its run was made with another record.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        was = values.pop("record")
        check_instance("record", was, dict, "an object")
        result = parse_run(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not the result of a run ({type(error).__name__}: {shorten(error)}); delete"
            " it to do the run again"
        ) from error
    now = json.loads(json.dumps(record))
    if was != now:
        names = [name for name in now if was.get(name) != now[name]] or ["record"]
        raise ValueError(
            f"{path.parent} holds a run with another {', '.join(names)}: take another work"
            " directory, or remove it"
        )
    return result


def _write_result(path: pathlib.Path, result: RunResult, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({**result._asdict(), "record": record}) + "\n")
