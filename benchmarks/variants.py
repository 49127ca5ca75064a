"""Compare GHN-2, GHN-1 and the MLP after the same number of steps, with several seeds.

    python benchmarks/variants.py --workdir /tmp/variants [--seeds 0 1 2]

Everything but the hypernetwork comes from `launch/configs/digits.py`. Accuracies are means over the
unseen architectures of the split `test`, on the test images of digits. Runs that are already
finished in the folder are not repeated.
"""

import argparse
import dataclasses
import importlib
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ghn_jax.cli.config_dict import build_config
from ghn_jax.evaluation.training_run import evaluate_run
from ghn_jax.hypernetworks import GHNConfig, ghn1, ghn2, mlp
from ghn_jax.programs.cache import ProgramCache
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train
from ghn_jax.training.trainer import Programs, Trainer

VARIANTS = {"ghn2": ghn2, "ghn1": ghn1, "mlp": mlp}


def variant_config(base: ExperimentConfig, name: str, seed: int, threads: int) -> ExperimentConfig:
    """Return the config of a variant: another hypernetwork of the same sizes, another seed."""
    sizes = {
        field: getattr(base.ghn, field) for field in ("num_classes", "hidden_size", "max_shape")
    }
    ghn: GHNConfig = VARIANTS[name](**sizes)
    training = dataclasses.replace(base.training, seed=seed, num_threads=threads)
    evaluation = dataclasses.replace(
        base.evaluation, splits=(("test", 100),), image_split="test", with_random=False
    )
    return dataclasses.replace(base, ghn=ghn, training=training, evaluation=evaluation)


def run_variant(config: ExperimentConfig, workdir: Path, targets: ProgramCache) -> None:
    """Train and evaluate one variant, reusing the target programs of the previous ones."""
    trainer = Trainer(config, programs=Programs(ProgramCache(), targets))
    start = time.perf_counter()
    trainer, state = train(config, workdir, trainer=trainer)
    print(f"{workdir.name}: {time.perf_counter() - start:.0f} s of training", flush=True)
    evaluate_run(trainer, state, config.evaluation, workdir / "evaluation")


def main() -> None:
    """Run the missing variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="Folder of the runs.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Training seeds.")
    parser.add_argument("--config", default="digits", help="Name of a config in launch/configs.")
    parser.add_argument("--num_threads", type=int, default=2, help="Architectures run at a time.")
    arguments = parser.parse_args()
    module = importlib.import_module(f"ghn_jax.configs.{arguments.config}")
    base = build_config(module.get_config())
    table = Table(title=f"top-1 in % on 100 unseen architectures, {base.training.num_steps} steps")
    table.add_column("seed")
    for name in VARIANTS:
        table.add_column(name, justify="right")
    targets = ProgramCache()
    for seed in arguments.seeds:
        cells = []
        for name in VARIANTS:
            folder = Path(arguments.workdir) / f"{name}_{seed}"
            result = folder / "evaluation" / "test.json"
            if not result.exists():
                config = variant_config(base, name, seed, arguments.num_threads)
                run_variant(config, folder, targets)
            values = json.loads(result.read_text(encoding="utf-8"))
            mean, error = values["top1_mean"], values["top1_standard_error"]
            cells.append(f"{100 * mean:.1f} +- {100 * error:.1f}")
        table.add_row(str(seed), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
