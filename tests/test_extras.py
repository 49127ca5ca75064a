"""Without the extras, GHNs load and predict, and what is missing is named."""

import subprocess
import sys

import pytest

from ghn_jax.extras import MissingExtraError, extra

PACKAGES = {
    "train": ("h5py", "matplotlib", "ml_collections", "PIL", "sklearn", "tensorboardX"),
    "tfds": ("tensorflow_datasets", "importlib_resources"),
    "hub": ("huggingface_hub",),
}

# As if they were not installed.
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_without(program, *extras):
    blocked = {name for key in extras for name in PACKAGES[key]}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + program],
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_missing_is_named():
    with pytest.raises(
        MissingExtraError,
        match=r"^things need no_such_package, which is not installed: pip install 'ghn_jax\[x\]'$",
    ):
        with extra("x", "things"):
            import no_such_package  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="ghn_jax.no_such_module"):  # a mistake of ours
        with extra("x", "things"):
            import ghn_jax.no_such_module  # noqa: F401


def test_loads_and_predicts_without_any_extra():
    result = run_without(
        """
import flax.linen as nn
import numpy as np
import ghn_jax

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2)))

ghn = ghn_jax.load("digits")
images = np.ones((2, 8, 8, 3), np.float32)
prediction = ghn.predict(Net(), images)
print(len(prediction.report.predicted), prediction.variables["params"]["Dense_0"]["kernel"].shape)
for name, argument in (("draw", prediction.graph), ("load_dataset", "digits")):
    try:
        getattr(ghn_jax, name)(argument)
    except ImportError as error:
        print(error)
""",
        *PACKAGES,
    )
    assert result.stderr == ""
    predicted, drawing, digits = result.stdout.splitlines()
    assert predicted == "4 (8, 10)"
    assert drawing.startswith(
        "pictures need matplotlib, which is not installed: pip install 'ghn_jax["
    )
    assert "ghn_jax[train]" in digits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config=smoke", "--workdir=x"], "configs need ml_collections"),
        (["predict", "--ghn=digits", "--architecture=val/3", "--deepnets=x"], "DeepNets-1M files"),
    ],
)
def test_programs_name_the_extra_in_one_line(arguments, message):
    program = f"from ghn_jax.cli.main import main\nmain(['ghn-jax', *{arguments}])"
    result = run_without(program, "train")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1
    assert result.stderr.endswith("pip install 'ghn_jax[train]'\n")


def test_data_sets_of_tfds_name_their_extra():
    result = run_without(
        "import ghn_jax\ntry:\n    ghn_jax.load_dataset('cifar10')\n"
        "except ImportError as error:\n    print(error)",
        "tfds",
    )
    assert result.stdout.endswith("pip install 'ghn_jax[tfds]'\n"), result
