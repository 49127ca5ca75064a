"""Evaluate the parameters a GHN predicts for architectures it never saw.

    ghn-jax evaluate --ghn digits --split test --workdir /tmp/evaluation
    ghn-jax evaluate --ghn ghn2_cifar10.pt --split test --deepnets data --images test.npz

Prints a line per architecture and a table. Writes to WORKDIR/evaluation a summary `SPLIT.json`, a
line per architecture in `SPLIT.jsonl`, and a plot. The GHN is a work directory of training, the
name of one that comes with the package, or an official `.pt` file. Without --workdir, the results
of a GHN in a work directory go there, those of others to the current folder. SIGTERM and Ctrl-C
exit with status 75; the same command goes on with the architectures that are left.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags

import ghn_jax
from ghn_jax.cli.command_line import run_program
from ghn_jax.cli.network_flags import define_ghn_flag
from ghn_jax.configuration import limits
from ghn_jax.data import load_dataset
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.evaluation.evaluate import EvaluationImages, Evaluator, evaluate_splits
from ghn_jax.evaluation.image_files import read_labelled_images
from ghn_jax.evaluation.journal import identify, keep_results
from ghn_jax.evaluation.report import report_splits
from ghn_jax.evaluation.splits import open_splits
from ghn_jax.interop.locations import CHECKPOINTS, resolve
from ghn_jax.programs.cache import enable_compilation_cache
from ghn_jax.sampling import SPLITS
from ghn_jax.training.config import PREDEFINED_SPLIT
from ghn_jax.training.interruption import exit_on_signals
from ghn_jax.training.trainer import check_dataset, create_task

# In distribution, then out of it.
ALL_SPLITS = ("test", "wide", "deep", "dense", "bnfree", PREDEFINED_SPLIT)

FLAGS = flags.FLAGS
define_ghn_flag()
flags.DEFINE_enum(
    "split", "test", [*SPLITS, PREDEFINED_SPLIT, "all"], "Split of architectures, or all of them."
)
flags.DEFINE_integer(
    "num_architectures",
    None,
    "Number of architectures per split; by default as published (500 for test, 100 for each OOD"
    " split), or all in a file.",
    lower_bound=1,
    upper_bound=limits.COUNT,
)
flags.DEFINE_string(
    "deepnets",
    None,
    "Folder of DeepNets-1M files to read the architectures from; by default they are drawn.",
)
flags.DEFINE_string(
    "images",
    None,
    "An .npz file to use instead of a data set, with 'images', (N, S, S, C) float32, already"
    " normalised, and 'labels'.",
)
flags.DEFINE_integer(
    "seed",
    None,
    "Seed of the architectures; by default that of the GHN's config.",
    lower_bound=0,
    upper_bound=limits.SEED,
)
flags.DEFINE_enum(
    "image_split", "test", ["validation", "test"], "Images to evaluate the networks on."
)
flags.DEFINE_string(
    "data", None, "Data set to use instead of the training one, such as npz:images.npz."
)
flags.DEFINE_string("data_dir", None, "Folder of prepared data sets.")
flags.DEFINE_bool("random", True, "Whether to also evaluate random (He) initialisation.")
flags.DEFINE_string(
    "workdir", None, "Folder for evaluation/SPLIT.json; by default the GHN's work directory."
)
flags.DEFINE_string(
    "compilation_cache_dir", None, "Folder to keep compiled programs in between runs."
)
flags.mark_flag_as_required("ghn")


def main() -> None:
    """Evaluate the splits that the flags name."""
    cache_dir = FLAGS.compilation_cache_dir
    ghn = ghn_jax.load(FLAGS.ghn)
    config = ghn.experiment
    if cache_dir := cache_dir or config.training.compilation_cache_dir:
        enable_compilation_cache(cache_dir)
    if FLAGS.images and (FLAGS.data or FLAGS.data_dir):
        raise ValueError("--images and --data are given, expected one source of images")
    if FLAGS.images:
        space = config.space
        dataset = read_labelled_images(FLAGS.images, *space.input_sizes)
    else:
        name = FLAGS.data or config.data.name
        data_dir = FLAGS.data_dir or config.data.data_dir
        dataset = load_dataset(name, data_dir, config.data.image_size, config.data.num_channels)
        check_dataset(config, dataset)
    splits = ALL_SPLITS if FLAGS.split == "all" else (FLAGS.split,)
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else resolve(FLAGS.ghn)
    is_kept = not workdir.is_dir() or (workdir / "run").is_dir()
    if not FLAGS.workdir and (is_kept or workdir.is_relative_to(CHECKPOINTS)):
        workdir = Path.cwd()  # never into a checkpoint or the installed package
    training, evaluation = config.training, config.evaluation
    engine = BlockwiseEngine(
        num_threads=training.num_threads, num_compile_threads=training.num_compile_threads
    )
    image_split = FLAGS.image_split
    images = EvaluationImages(dataset, image_split, evaluation.batch_size, evaluation.max_images)
    task = create_task(config)
    evaluator = Evaluator(ghn.predictor, engine, images, task.metrics_fn, training.num_threads)
    seed = evaluation.seed if FLAGS.seed is None else FLAGS.seed
    numbers = [(split, FLAGS.num_architectures) for split in splits]
    random_seed = seed if FLAGS.random else None
    opened = open_splits(config, numbers, seed, FLAGS.deepnets)
    folder = workdir / "evaluation"
    identity = identify(config, ghn.ghn_params, images, seed, random_seed, FLAGS.deepnets)
    exit_on_signals(f"the results so far are kept in {folder}")
    with keep_results(folder, identity) as journal:
        report_splits(
            evaluate_splits(evaluator, ghn.ghn_params, opened, random_seed, journal),
            f"{dataset.name}, {image_split} images, seed {seed}",
            folder,
            lists_architectures=True,
            task=task,
        )


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program with a command line, by default the process's, and exit."""
    run_program(main, argv)
