"""Evaluate the GHN of a training run, during or after the run, by an evaluation config."""

import contextlib
from pathlib import Path

from ghn_jax.evaluation.evaluate import EvaluationImages, Evaluator, Summary, evaluate_splits
from ghn_jax.evaluation.journal import identify, keep_results
from ghn_jax.evaluation.report import report_splits
from ghn_jax.evaluation.splits import open_splits
from ghn_jax.training.config import EvaluationConfig
from ghn_jax.training.trainer import Trainer, TrainState


def evaluate_run(
    trainer: Trainer, state: TrainState, evaluation: EvaluationConfig, folder: Path | None = None
) -> list[Summary]:
    """Evaluate a state of a run on its own programs and images, and show the results.

    Args:
        trainer: The trainer of the run.
        state: The state, which has the hypernetwork's parameters.
        evaluation: The splits and images to evaluate on, not necessarily those of the run's config.
        folder: The folder for the results; None writes nothing. An evaluation that was stopped
            goes on where it was.

    Returns:
        One summary per split.

    Raises:
        FolderInUseError: If another process evaluates into the folder.
    """
    image_split, seed = evaluation.image_split, evaluation.seed
    images = EvaluationImages(
        trainer.dataset, image_split, evaluation.batch_size, evaluation.max_images
    )
    num_threads = trainer.config.training.num_threads
    evaluator = Evaluator(
        trainer.predictor, trainer.engine, images, trainer.task.metrics_fn, num_threads
    )
    splits = open_splits(trainer.config, evaluation.splits, seed)
    random_seed = seed if evaluation.with_random else None
    ghn_params = trainer.local_params(state)
    title = f"{trainer.dataset.name}, {image_split} images, seed {seed}"
    with contextlib.ExitStack() as stack:
        journal = None
        if folder is not None:
            identity = identify(trainer.config, ghn_params, images, seed, random_seed)
            journal = stack.enter_context(keep_results(folder, identity))
        measured = evaluate_splits(evaluator, ghn_params, splits, random_seed, journal)
        return report_splits(measured, title, folder, task=trainer.task)
