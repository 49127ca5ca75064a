"""Train a GHN and evaluate the parameters it predicts for architectures it never saw.

    python launch/train.py --config launch/configs/digits.py --workdir /tmp/digits

A run in an existing workdir goes on from its latest checkpoint. SIGTERM and Ctrl-C save and exit
with status 75: the same command goes on. All devices of the machine train, and those of others if
each process has JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in its environment,
or is started by Slurm, Open MPI or on a TPU pod.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `launch` itself, from anywhere

import jax  # noqa: E402

from ghn_jax.evaluation.report import evaluate_splits  # noqa: E402
from ghn_jax.parallel.processes import connect_processes  # noqa: E402
from ghn_jax.training.config import ExperimentConfig  # noqa: E402
from ghn_jax.training.interruption import RESUME_STATUS, InterruptedRunError  # noqa: E402
from ghn_jax.training.loop import train  # noqa: E402
from ghn_jax.training.skipping import TooManySkippedError  # noqa: E402
from ghn_jax.training.trainer import Trainer, TrainState  # noqa: E402
from ghn_jax.training.workers import WorkerError  # noqa: E402
from launch import config_flags  # noqa: E402
from launch.command_line import fail  # noqa: E402


def main(config: ExperimentConfig, workdir: str) -> None:
    """Train, then evaluate on the splits of `config.evaluation`."""

    def evaluate(trainer: Trainer, state: TrainState) -> dict[str, float]:
        summaries = evaluate_splits(
            trainer.predictor,
            trainer.engine,
            trainer.dataset,
            trainer.local_params(state),
            config,
            splits=(("val", config.evaluation.num_validation),),
            image_split="validation",
        )
        return {f"val/{name}": getattr(summaries[0], name) for name in ("top1_mean", "top5_mean")}

    connect_processes()
    try:
        trainer, state = train(config, workdir, evaluate_fn=evaluate)
    except InterruptedRunError as error:
        fail(str(error), RESUME_STATUS)
    if config.evaluation.splits and jax.process_index() == 0:
        evaluate_splits(
            trainer.predictor,
            trainer.engine,
            trainer.dataset,
            trainer.local_params(state),
            config,
            splits=config.evaluation.splits,
            image_split=config.evaluation.image_split,
            with_random=config.evaluation.with_random,
            folder=Path(workdir) / "evaluation",
        )


if __name__ == "__main__":
    config_flags.run(main, TooManySkippedError, WorkerError)
