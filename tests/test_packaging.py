"""What a wheel and an sdist hold, and a stranger's first hour with the wheel in an empty folder."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import ghn_jax
from ghn_jax.cli.main import PROGRAMS

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHECKPOINT = {
    path.relative_to(REPOSITORY).as_posix()
    for path in (REPOSITORY / "ghn_jax" / "checkpoints").rglob("*")
    if path.is_file()
}
CONFIGS = {path.name for path in (REPOSITORY / "launch" / "configs").glob("*.py")}

SESSION = """
import flax.linen as nn
import jax
import numpy as np

import ghn_jax

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))

images = np.random.default_rng(0).random((16, 8, 8, 3), np.float32)
prediction = ghn_jax.load("digits").predict(Net(), images, train=False)
variables = ghn_jax.calibrate_batch_stats(Net(), prediction.variables, images, train=True)
assert np.isfinite(Net().apply(variables, images, train=False)).all()
ghn_jax.draw(prediction.graph, "graph.svg")
dataset = ghn_jax.load_dataset("digits")
print(ghn_jax.__file__, len(prediction.report.predicted), dataset.num_classes)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", folder, REPOSITORY]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The programs of an environment with the wheel; what it needs is seen in this one."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", wheel], check=True)
    # A path file adds folders behind the environment's own, whose path files stay unread.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(program, *arguments, folder):
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [program, *map(str, arguments)],
        cwd=folder,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_everything(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        headers = file.read(metadata).decode().partition("\n\n")[0].splitlines()
        scripts = file.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert names >= CHECKPOINT | {"ghn_jax/py.typed"}
    assert {Path(name).name for name in names if name.startswith("ghn_jax/configs/")} == CONFIGS
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"ghn_jax", metadata.split("/")[0]}
    assert f"Version: {ghn_jax.__version__}" in headers
    assert scripts.splitlines() == ["[console_scripts]", "ghn-jax = ghn_jax.cli.main:main"]
    extras = {line.split(": ")[1] for line in headers if line.startswith("Provides-Extra")}
    assert extras >= {"train", "tfds", "hub", "docs", "test", "dev"}
    needed = {line for line in headers if line.startswith("Requires-Dist") and "extra" not in line}
    assert len(needed) == len(PROJECT["dependencies"])
    others = ("tensorflow", "scikit-learn", "tensorboardX", "h5py", "matplotlib")
    assert not [line for line in needed if any(name in line for name in others)]


def test_the_sdist_holds_everything(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert names >= CHECKPOINT | {"ghn_jax/py.typed", "LICENSE", "README.md", "setup.py"}
    assert names >= {f"launch/configs/{name}" for name in CONFIGS}


def test_loads_predicts_calibrates_and_draws(installed, tmp_path):
    result = run(installed / "python", "-c", SESSION, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, ""), result
    path, num_predicted, num_classes = result.stdout.split()
    assert path.startswith(str(installed.parent)) and (num_predicted, num_classes) == ("6", "10")
    assert (tmp_path / "graph.svg").stat().st_size > 1000


@pytest.mark.slow
def test_trains_and_evaluates(installed, tmp_path):
    flags = ("--config", "smoke", "--workdir", "run")
    trained = run(installed / "ghn-jax", "train", *flags, folder=tmp_path)
    assert (trained.returncode, trained.stderr) == (0, ""), trained
    assert "step 2/2" in trained.stdout
    flags = ("--ghn", "run", "--num_architectures", 1, "--norandom")
    evaluated = run(installed / "ghn-jax", "evaluate", *flags, folder=tmp_path)
    assert (evaluated.returncode, evaluated.stderr) == (0, ""), evaluated
    assert (tmp_path / "run" / "evaluation" / "test.json").is_file()


def test_every_program_has_help(installed, tmp_path):
    result = run(installed / "ghn-jax", "--help", folder=tmp_path)
    assert result.returncode == 0 and all(f"\n  {name} " in result.stdout for name in PROGRAMS)


def test_parity_says_which_folder_it_wants(installed, tmp_path):
    result = run(installed / "python", "-m", "ghn_jax.interop.parity", folder=tmp_path)
    assert result.returncode == 2
    assert "expected --reference or GHN_JAX_REFERENCE: a folder" in " ".join(result.stderr.split())


def test_the_documentation_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    page = (tmp_path / "api" / "index.html").read_text()
    for name in ("ghn_jax.load", "ghn_jax.GHN.predict", "ghn_jax.register_message_passing"):
        assert f'id="{name}"' in page
