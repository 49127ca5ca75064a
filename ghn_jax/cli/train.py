"""Train a GHN and evaluate the parameters it predicts for architectures it never saw.

    ghn-jax train --config digits --workdir /tmp/digits

A run in an existing workdir resumes from its latest checkpoint. SIGTERM and Ctrl-C save and exit
with status 75; the same command then resumes. Training uses all devices of the machine, and those
of other machines if each process has JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
in its environment, or is started by Slurm or Open MPI or on a TPU pod.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax

from ghn_jax.cli import config_flags
from ghn_jax.evaluation.training_run import evaluate_run
from ghn_jax.parallel.processes import connect_processes
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.interruption import exit_on_signals
from ghn_jax.training.loop import train
from ghn_jax.training.run_loop import lock_run
from ghn_jax.training.skipping import TooManySkippedError
from ghn_jax.training.trainer import Trainer, TrainState
from ghn_jax.training.workers import WorkerError


def main(config: ExperimentConfig, workdir: str) -> None:
    """Train, then evaluate on the splits of `config.evaluation`."""

    evaluation = config.evaluation
    during = dataclasses.replace(
        evaluation,
        splits=(("val", evaluation.num_validation),),
        image_split="validation",
        with_random=False,
    )

    def evaluate(trainer: Trainer, state: TrainState) -> dict[str, float]:
        (summary,) = evaluate_run(trainer, state, during)
        return {f"val/{name}_mean": mean.mean for name, mean in summary.metrics.items()}

    connect_processes()
    with lock_run(workdir):
        trainer, state = train(config, workdir, evaluate_fn=evaluate)
        if evaluation.splits and jax.process_index() == 0:
            exit_on_signals(f"training has ended and is saved in {workdir}, its evaluation has not")
            evaluate_run(trainer, state, evaluation, Path(workdir) / "evaluation")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    config_flags.run(main, argv, TooManySkippedError, WorkerError)
