"""Train a GHN and evaluate the parameters it predicts for architectures it never saw.

    python launch/train.py --config launch/configs/digits.py --workdir /tmp/digits

A run in an existing workdir goes on from its latest checkpoint.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `launch` itself, from anywhere

from ghn_jax.evaluation.report import evaluate_splits  # noqa: E402
from ghn_jax.training.config import ExperimentConfig  # noqa: E402
from ghn_jax.training.loop import Trainer, TrainState, train  # noqa: E402
from ghn_jax.training.skipping import TooManySkippedError  # noqa: E402
from launch import config_flags  # noqa: E402


def main(config: ExperimentConfig, workdir: str) -> None:
    """Train, then evaluate on the splits of `config.evaluation`."""

    def evaluate(trainer: Trainer, state: TrainState) -> dict[str, float]:
        summaries = evaluate_splits(
            trainer.predictor,
            trainer.engine,
            trainer.dataset,
            state.ghn_params,
            config,
            splits=(("val", config.evaluation.num_validation),),
            image_split="validation",
        )
        return {f"val/{name}": getattr(summaries[0], name) for name in ("top1_mean", "top5_mean")}

    trainer, state = train(config, workdir, evaluate_fn=evaluate)
    if config.evaluation.splits:
        evaluate_splits(
            trainer.predictor,
            trainer.engine,
            trainer.dataset,
            state.ghn_params,
            config,
            splits=config.evaluation.splits,
            image_split=config.evaluation.image_split,
            with_random=config.evaluation.with_random,
            folder=Path(workdir) / "evaluation",
        )


if __name__ == "__main__":
    config_flags.run(main, TooManySkippedError)
