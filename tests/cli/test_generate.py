"""`launch.generate` as a user runs it."""

import subprocess
import sys
from pathlib import Path

from ghn_jax.cli.generate import draw_records
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.sampling import SpaceConfig, sample_architecture

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "launch.generate", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_writes_a_split_and_refuses_to_overwrite_it(tmp_path):
    output = tmp_path / "new"
    arguments = ("--split=deep", "--num_architectures=4", "--seed=3", f"--output={output}")
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    assert "4/4" in first.stdout and "architectures/s" in first.stdout
    nets = DeepNets1M(output, "deep")
    space = SpaceConfig(split="deep")
    assert [net.architecture for net in nets] == [
        sample_architecture(space, 3, i) for i in range(4)
    ]
    second = run(*arguments)
    assert second.returncode == 1
    assert "deepnets1m_deep.hdf5 exists, expected a new file" in second.stderr
    assert second.stderr.startswith("error: ") and second.stderr.count("\n") == 1


def test_help_has_a_sentence_per_flag():
    text = run("--help").stdout
    for flag in ("--split", "--output", "--num_architectures", "--seed", "--num_workers"):
        assert flag in text


def test_stray_arguments_are_reported(tmp_path):
    result = run("val", f"--output={tmp_path}")
    assert result.returncode == 2
    assert result.stderr == "error: unexpected argument 'val', expected only flags (--name=value)\n"


def test_workers_change_nothing():
    space = SpaceConfig(split="val")
    alone = draw_records(space, seed=0, count=5, num_workers=1)
    together = draw_records(space, seed=0, count=5, num_workers=2)
    for first, second in zip(alone, together, strict=True):
        assert first.entry == second.entry
        assert first.names == second.names
        assert (first.adjacency == second.adjacency).all()
