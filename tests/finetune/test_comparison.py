"""Comparisons: the grid, the choice on validation images, what is resumed, and the outputs."""

import json

import flax.linen as nn
import numpy as np
import pytest

import ghn_jax
from ghn_jax.data import load_dataset
from ghn_jax.finetune.comparison import Comparison
from ghn_jax.finetune.comparison_report import Row, RunResult, markdown_table, read_comparison
from ghn_jax.finetune.config import FinetuneConfig
from ghn_jax.finetune.network_training import DivergedError, NetworkTrainer


class Net(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def ghn():
    return ghn_jax.load("digits")


def config_of(**values):
    return FinetuneConfig.from_dict(
        {
            "data": {"name": "digits", "batch_size": 20},
            "optimizer": {"name": "adamw", "schedule": "cosine", "weight_decay": 0.0},
            "training": {"num_steps": 4, "evaluate_every": 2},
            "num_shots": 4,
            "num_seeds": 2,
            "learning_rates": (1e-5, 3e-2),
            "inits": ("random", "ghn-orth"),
            **values,
        }
    )


def test_a_comparison_is_made_once_and_resumed(dataset, ghn, tmp_path, monkeypatch):
    calls = []
    run = NetworkTrainer.run

    def counted(self, variables, **arguments):
        calls.append((arguments["learning_rate"], arguments["seed"], len(self.dataset.train)))
        return run(self, variables, **arguments)

    monkeypatch.setattr(NetworkTrainer, "run", counted)
    rows = Comparison(config_of(), dataset, ghn, tmp_path, "digits").run({"net": Net()})
    assert [(row.architecture, row.init) for row in rows] == [
        ("net", "random"),
        ("net", "ghn-orth"),
    ]
    # Four runs for each initialisation, and the two chosen ones again for the test images.
    assert len(calls) == 12 and {shots for _, _, shots in calls} == {40}
    for row in rows:
        assert [run.seed for run in row.runs] == [0, 1]
        assert all(0 <= run.test <= 1 and len(run.curve) == 3 for run in row.runs)
        means = {}
        for rate in (1e-5, 3e-2):
            folder = tmp_path / "runs" / "net" / row.init / f"rate_{rate:g}"
            results = [
                json.loads((folder / f"seed_{seed}" / "result.json").read_text()) for seed in (0, 1)
            ]
            means[rate] = np.mean([result["curve"][-1][1] for result in results])
            assert all(
                (result["test"] is None) == (rate != row.learning_rate) for result in results
            )
        assert row.learning_rate == max(means, key=means.get)
    assert read_comparison(tmp_path) == rows
    assert (tmp_path / "table.md").read_text() == markdown_table(rows)
    assert (tmp_path / "curves.png").stat().st_size > 1000

    # The same call does nothing; one with another seed does only what is new.
    calls.clear()
    assert Comparison(config_of(), dataset, ghn, tmp_path, "digits").run({"net": Net()}) == rows
    assert calls == []
    more = Comparison(config_of(num_seeds=3, inits=("random",)), dataset, ghn, tmp_path, "digits")
    more.run({"net": Net()})
    assert {seed for _, seed, _ in calls[:2]} == {2}

    with pytest.raises(ValueError, match="holds a run with another num_shots: take another"):
        Comparison(config_of(num_shots=5), dataset, ghn, tmp_path, "digits").run({"net": Net()})
    with pytest.raises(ValueError, match="holds a run with another noise_beta"):
        Comparison(config_of(noise_beta=1.0), dataset, ghn, tmp_path, "digits").run({"net": Net()})


def test_a_run_that_diverges_counts_as_zero(dataset, tmp_path, monkeypatch):
    run = NetworkTrainer.run

    def diverge(self, variables, **arguments):
        if arguments["learning_rate"] == 3e-2:
            raise DivergedError("the loss is nan")
        return run(self, variables, **arguments)

    monkeypatch.setattr(NetworkTrainer, "run", diverge)
    rows = Comparison(config_of(inits=("random",)), dataset, None, tmp_path).run({"net": Net()})
    assert rows[0].learning_rate == 1e-5


def test_errors(dataset, ghn, tmp_path):
    with pytest.raises(
        ValueError, match="ghn is missing, expected a GHN for inits = random, ghn-o"
    ):
        Comparison(config_of(), dataset, None, tmp_path)
    with pytest.raises(ValueError, match="^config is {}, expected a FinetuneConfig"):
        Comparison({}, dataset, ghn, tmp_path)
    with pytest.raises(ValueError, match="^dataset is 'digits', expected a ghn_jax.data.Dataset"):
        Comparison(config_of(), "digits", ghn, tmp_path)
    with pytest.raises(ValueError, match=r"num_shots is 500, expected at most \d+: class 0 of"):
        Comparison(config_of(num_shots=500), dataset, ghn, tmp_path)
    with pytest.raises(ValueError, match=r"first_layer is 2, expected 'auto' or an int in 1..1"):
        Comparison(config_of(first_layer=2), dataset, ghn, tmp_path).run({"net": Net()})
    assert not list(tmp_path.iterdir())


def test_table_shows_means_and_errors():
    runs = [RunResult(s, 0.1, [(0, 0.1), (4, v)], v - 0.1) for s, v in ((0, 0.5), (1, 0.7))]
    text = markdown_table([Row("net", "ghn", 0.1, runs)])
    assert text.splitlines()[2] == ("| net | ghn | 0.1 | 10.0 ± 0.0 | 60.0 ± 10.0 | 50.0 ± 10.0 |")
