"""Fine-tuning, training from scratch and diagnosing, as a user runs them."""

import json

import pytest
from program_runs import run

STUDY = (
    "--config=launch/configs/finetune_study.py",
    "--config.data.name=digits",
    "--config.data.image_size=8",
    "--config.num_shots=3",
    "--config.num_seeds=1",
    "--config.learning_rates=(0.001,)",
    "--config.training.num_steps=2",
    "--config.training.evaluate_every=1",
    "--config.training.max_validation_images=50",
)


@pytest.mark.slow
def test_finetunes_tabulates_and_goes_on(tmp_path):
    flags = (*STUDY, "--ghn=digits", "--architecture=small_vit", f"--workdir={tmp_path}")
    status, output, errors = run("finetune", *flags, "--init=random")
    assert (status, errors) == (0, "")
    status, output, errors = run("finetune", *flags, "--init=random,ghn-orth", "--first_layer=5")
    assert (status, errors) == (0, "")
    assert "ghn-orth  rate 0.001  seed 0  validation top-1" in output
    assert "mean ± standard error over seeds" in output
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["init"] for row in rows] == ["random", "ghn-orth"]
    assert (tmp_path / "curves.png").is_file()
    assert "| small_vit | ghn-orth | 0.001 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--architecture is missing"),
        (("--architecture=small_vit",), "ghn is missing, expected a GHN for inits"),
        (
            ("--architecture=small_vti", "--init=random"),
            "architecture is 'small_vti' (did you mean 'small_vit'?), expected",
        ),
        (
            ("--architecture=small_vit", "--ghn=digits", "--first_layer=26"),
            "first_layer is 26, expected 'auto' or an int in 1..25",
        ),
        (
            ("--architecture=small_vit", "--init=random", "--config.num_shots=999"),
            "num_shots is 999, expected at most",
        ),
        (("--architecture=small_vit", "--first_layer=half"), "--first_layer is 'half', expected"),
        (("--architecture=small_vit", "--init=orth"), "inits[0] is 'orth'"),
    ],
)
def test_finetune_mistakes_in_one_line(arguments, message, tmp_path):
    status, _, errors = run("finetune", *STUDY, f"--workdir={tmp_path}", *arguments)
    assert status in (1, 2) and errors.startswith(f"error: {message}"), errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_trains_a_network_and_says_what_a_prediction_is_worth(tmp_path):
    flags = (
        "--config=launch/configs/network_digits.py",
        "--config.training.num_steps=20",
        "--architecture=small_vit",
        f"--workdir={tmp_path}",
    )
    status, output, errors = run("train_network", *flags, "--ghn=digits")
    assert (status, errors) == (0, "")
    assert "parameters, 20 steps" in output and "test        top-1" in output
    assert "predicted parameters: top-1" in output and "iterations" in output
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "validation/top1" in line]
    assert steps == [0, 5, 10, 15, 20]
    assert (tmp_path / "iterations.png").is_file()


def test_train_network_mistakes_in_one_line(tmp_path):
    config = "--config=launch/configs/network_digits.py"
    for arguments, message in (
        ((), "--architecture is missing, expected the network to train"),
        (
            ("--architecture=small_vit", "--config.training.drop_path=0.1"),
            "training.drop_path is 0.1 and training.auxiliary_weight is 0.0, expected 0",
        ),
    ):
        status, _, errors = run("train_network", config, f"--workdir={tmp_path}", *arguments)
        assert status in (1, 2) and errors.startswith(f"error: {message}"), errors


def test_diagnoses(tmp_path):
    path = tmp_path / "diagnosis.png"
    flags = ("--ghn=digits", "--architecture=small_vit", f"--out={path}", "--init=ghn,ghn-orth")
    status, output, errors = run("diagnose", *flags)
    assert (status, errors) == (0, "")
    assert "small_vit, 26 kernels, means" in output and path.stat().st_size > 10_000
    status, _, errors = run("diagnose", *flags, "--first_layer=26")
    assert status == 1 and errors.startswith("error: first_layer is 26, expected 'auto' or an int")
