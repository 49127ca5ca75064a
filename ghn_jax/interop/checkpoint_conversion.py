"""Convert checkpoints: official `.pt` files to Orbax folders, and back.

In: the path of one kind. Out: the other kind with the same numbers; the round trip is exact. An
Orbax folder holds a whole run. One made from an official file is a run at step 0, with a fresh
optimizer, that remembers the epoch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import check_count
from ghn_jax.hypernetworks import parameter_shapes
from ghn_jax.interop.locations import resolve
from ghn_jax.interop.torch_checkpoints import (
    TorchCheckpoint,
    load_torch_checkpoint,
    official_experiment,
    save_torch_checkpoint,
)
from ghn_jax.training.checkpoints import CheckpointStore, load_checkpoint, load_counters
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.optimizers import create_optimizer
from ghn_jax.training.skipping import SkipRule


def convert_to_orbax(path: str | os.PathLike[str], workdir: str | os.PathLike[str]) -> None:
    """Write an official checkpoint as the folder of a run, which `ghn_jax.load` reads.

    Args:
        path: path of a `.pt` file.
        workdir: work directory of the new run.

    Raises:
        ValueError: if the file is not an official checkpoint, or the folder is not empty.
    """
    _check_empty(Path(workdir))
    checkpoint = load_torch_checkpoint(Path(path))
    config = official_experiment(checkpoint.config)
    write_run(workdir, config, checkpoint.variables["params"], checkpoint.epoch)


def write_run(
    workdir: str | os.PathLike[str], config: ExperimentConfig, ghn_params: Any, epoch: int = 0
) -> None:
    """Write a GHN as the folder of a run at step 0, with a fresh optimizer.

    Args:
        workdir: work directory of the new run.
        config: the run's config.
        ghn_params: the GHN's parameters.
        epoch: the epoch recorded in an official checkpoint.

    Raises:
        ValueError: if the folder is not empty.
    """
    folder = Path(workdir)
    _check_empty(folder)
    training = config.training
    skips = SkipRule(training.max_skipped_share, training.skip_window)
    with CheckpointStore(folder) as store:
        store.save(
            0,
            params=ghn_params,
            state=create_optimizer(config.optimizer, training.num_steps).init(ghn_params),
            key=jax.random.key(training.seed),
            counters={"next_architecture": 0, "skips": skips.state(), "epoch": epoch},
            config=config,
        )
        store.wait()


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists, expected a new or empty folder")


def convert_to_torch(path: str | os.PathLike[str], torch_path: str | os.PathLike[str]) -> None:
    """Write a GHN as an official checkpoint, which the original's `GHN.load` reads.

    Args:
        path: a work directory of training, a checkpoint in one, or the name of a packaged GHN.
        torch_path: path of the new `.pt` file. Its epoch is 0 unless the GHN came from such a file.

    Raises:
        ValueError: if there is no readable checkpoint, the new file already exists, or the original
            has no such hypernetwork.
    """
    folder = resolve(Path(path))
    config, ghn_params = load_checkpoint(
        folder, lambda config, stored: parameter_shapes(config.ghn)["params"]
    )
    epoch = load_counters(folder).get("epoch", 0)
    check_count(f"epoch in the checkpoint {folder}", epoch, limits.COUNT)
    checkpoint = TorchCheckpoint(config.ghn, {"params": ghn_params}, epoch)
    save_torch_checkpoint(Path(torch_path), checkpoint)
