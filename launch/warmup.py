"""Compile ahead what training will need, and keep it on disk for every later run.

    python launch/warmup.py --config launch/configs/cifar10_ghn2.py
        --config.training.compilation_cache_dir=~/.cache/ghn_jax

Architectures are drawn from the config's space; the programs that cover 99% of their calls are
compiled in `training.num_compile_threads` threads. Rare ones compile when training meets them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `launch` itself, from anywhere

import rich.progress  # noqa: E402
from absl import flags  # noqa: E402

from ghn_jax.compilation import enable_compilation_cache  # noqa: E402
from ghn_jax.engine.blockwise import BlockwiseEngine  # noqa: E402
from ghn_jax.training.architecture_sources import create_source  # noqa: E402
from ghn_jax.training.config import ExperimentConfig  # noqa: E402
from launch import config_flags  # noqa: E402

flags.DEFINE_integer("num_architectures", 500, "Architectures whose calls are counted.")
flags.DEFINE_float("coverage", 0.99, "Share of all calls whose programs are compiled.")
FLAGS = flags.FLAGS


def main(config: ExperimentConfig, workdir: str) -> None:
    """Draw architectures, count their blocks, compile the most frequent ones."""
    training = config.training
    enable_compilation_cache(training.compilation_cache_dir or Path(workdir) / "compiled")
    engine = BlockwiseEngine(
        training.label_smoothing,
        num_compile_threads=training.num_compile_threads,
        compute_dtype=training.compute_dtype,
    )
    source = create_source(config.architectures, config.space, training.seed, config.ghn)
    plans = [source.lower(source.draw(index)) for index in range(FLAGS.num_architectures)]

    def progress(keys, total):
        return rich.progress.track(keys, "compiling", total)

    num_programs = engine.warm_up(
        plans,
        config.data.batch_size,
        drops=training.target_dropout,
        coverage=FLAGS.coverage,
        progress=progress,
    )
    print(f"{num_programs} signatures, {engine.num_compilations} programs")


if __name__ == "__main__":
    config_flags.run(main)
