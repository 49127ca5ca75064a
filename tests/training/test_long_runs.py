"""Long runs: memory, open files and the number of programs level off."""

import gc
import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest
from ghn_jax.configs import digits

from ghn_jax.cli.config_dict import build_config
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.training.architecture_sources import create_source

ROOT = pathlib.Path(__file__).parents[2]
MEBIBYTE = 2**20

pytestmark = pytest.mark.slow


class Usage(NamedTuple):
    """What the process uses: MiB of memory, open files; and programs, made so far."""

    memory: float
    num_files: int
    num_programs: int


def measure(num_programs):
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE
    return Usage(memory, len(os.listdir("/proc/self/fd")), num_programs)


def digits_config(**training):
    config = digits.get_config()
    config.training.update(training)
    return build_config(config)


def assert_levels_off(usages):
    """A leak of 100 kB a step, of a file every hundred steps or of a program every ten shows."""
    early, late = usages[len(usages) // 2], usages[-1]
    assert late.memory < max(1.1 * early.memory, early.memory + 100), usages
    assert late.memory < 1536, usages
    assert late.num_files <= early.num_files + 5, usages
    assert late.num_programs <= 1.1 * early.num_programs, usages


RUN = """
import json, sys
from ghn_jax.training.loop import train
from test_long_runs import digits_config, measure

def evaluate(trainer, state):
    print(json.dumps(measure(trainer.num_compilations)), flush=True)
    return {}

config = digits_config(num_steps=2000, checkpoint_every=50, evaluate_every=100)
train(config, sys.argv[1], evaluate_fn=evaluate)
"""


def test_two_thousand_steps_of_digits(tmp_path):
    """In a process as a user's, without the flags of these tests."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "training")])
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": path},
    ) as process:
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0, lines
    usages = [Usage(*json.loads(line)) for line in lines if line.startswith("[")]
    assert len(usages) == 19  # the end is evaluated by the program
    assert_levels_off(usages)


def test_fifty_thousand_drawn_architectures(counts_programs):
    """Drawn, lowered, made into graphs; their programs counted without compiling them."""
    source, engine, usages = create_source(digits_config()), BlockwiseEngine(), []
    for index in range(50_000):
        plan = source.lower(source.draw(index))
        source.graph(index, plan)
        engine.compile_ahead([plan], batch_size=64)
        if (index + 1) % 5000 == 0:
            usages.append(measure(engine.num_compilations))
    assert_levels_off(usages)
