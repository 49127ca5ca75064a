"""`launch/draw.py`: a picture, printed properties, mistakes in one line."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FACTORY = """
import flax.linen as nn

def make():
    return nn.Dense(10)
"""


def run(tmp_path, *arguments):
    command = [sys.executable, str(REPOSITORY / "launch" / "draw.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)


def test_draw_a_network_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    done = run(tmp_path, "--architecture=mine:make", "--out=graph.svg", "--image_size=8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "3 nodes, 2 edges, mean degree 1.33, mean path 1.3, depth 2",
        "40 of 40 parameters predicted, 2 tensors",
    ]
    assert (tmp_path / "graph.svg").stat().st_size > 1000


def test_a_misspelt_name(tmp_path):
    done = run(tmp_path, "--architecture=resnet_50", "--out=graph.svg")
    assert done.returncode == 1
    assert "architecture is 'resnet_50' (did you mean 'resnet50'?)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_small_images_are_of_named_networks(tmp_path):
    done = run(tmp_path, "--architecture=vit", "--out=graph.svg", "--small_images")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --small_images is given for 'vit', expected a name of")
