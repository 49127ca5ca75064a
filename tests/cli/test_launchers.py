"""The programs as a user runs them: training, evaluation, and every mistake in one line."""

import concurrent.futures
import json
import shutil

import numpy as np
import pytest
from program_runs import ROOT, run

SMOKE = "--config=launch/configs/smoke.py"


def assert_one_line(result, message, status=1):
    assert result[0] == status, result
    assert result[2].startswith(f"error: {message}"), result
    assert result[2].count("\n") == 1 and result[2].endswith("\n"), result


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """The folder of a run of the smoke config, and what it printed."""
    workdir = tmp_path_factory.mktemp("smoke")
    flags = (SMOKE, f"--workdir={workdir}", f"--config.training.compilation_cache_dir={cache}")
    status, output, errors = run("train", *flags)
    assert (status, errors) == (0, "")
    return workdir, output


def test_smoke_trains_and_evaluates(trained):
    workdir, output = trained
    assert "step 2/2" in output and "loss" in output
    assert "mean +- standard error; digits, test images, seed 1" in output
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"1", "2"}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert list((workdir / "tensorboard").iterdir())
    summary = json.loads((workdir / "evaluation" / "test.json").read_text())
    assert (summary["split"], summary["num_architectures"]) == ("test", 2)
    assert 0 <= summary["top1_mean"] <= summary["top5_mean"] <= 1
    assert 0 <= summary["random_top1_mean"] <= 1


def test_evaluates_a_trained_ghn(trained, tmp_path):
    workdir, _ = trained
    flags = ("--split=test", "--num_architectures=2", "--seed=3", f"--workdir={tmp_path}")
    status, output, errors = run("evaluate", "--ghn", workdir, *flags, "--norandom")
    assert (status, errors) == (0, "")
    assert "digits, test images, seed 3" in output
    summary = json.loads((tmp_path / "evaluation" / "test.json").read_text())
    lines = (tmp_path / "evaluation" / "test.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert [result["index"] for result in results] == [0, 1]
    assert summary["top1_mean"] == pytest.approx(np.mean([r["top1"] for r in results]))
    assert "random_top1_mean" not in summary
    assert (tmp_path / "evaluation" / "splits.png").exists()


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(trained, cache, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained[0], workdir)
    flags = (SMOKE, f"--workdir={workdir}", f"--config.training.compilation_cache_dir={cache}")
    status, output, errors = run(
        "train", *flags, "--config.training.num_steps=3", "--config.evaluation.splits=()"
    )
    assert status == 0
    assert "going on from step 2 of" in errors and errors.count("\n") == 1
    assert "step 3/3" in output
    assert (workdir / "checkpoints" / "3").is_dir()


def test_mistakes_give_one_line(trained, tmp_path, cache):
    """Two at a time: importing takes most of it."""
    workdir, _ = trained
    damaged = tmp_path / "damaged"
    shutil.copytree(workdir, damaged)
    (damaged / "checkpoints" / "2" / "run" / "metadata").write_text("{")
    images = {f"{split}_images": np.zeros((30, 12, 12, 3), np.uint8) for split in ("train", "test")}
    labels = {f"{split}_labels": np.arange(30) % 10 for split in ("train", "test")}
    np.savez(tmp_path / "large.npz", **images, **labels)
    train = ("train", SMOKE)
    diverges = ("--config.optimizer.learning_rate=1e30", "--config.training.max_skipped_share=0")
    diverges += (f"--config.training.compilation_cache_dir={cache}",)
    cases = {
        (
            "evaluate",
            "--ghn=x",
            "--split=tset",
        ): "flag --split=tset: value should be one of <train|",
        (
            "evaluate",
            f"--ghn={tmp_path}/nowhere",
        ): f"path is '{tmp_path}/nowhere', expected the folder",
        (
            "evaluate",
            f"--ghn={damaged}",
        ): f"the checkpoint {damaged}/checkpoints/2 cannot be read (",
        (
            "evaluate",
            f"--ghn={workdir}",
            f"--data=npz:{tmp_path}/large.npz",
        ): f"space.image_size is 8, expected 12 for the data set 'npz:{tmp_path}/large.npz'",
        (
            *train,
            f"--workdir={workdir}",
            "--config.ghn.hidden_size=16",
        ): f"{workdir}/checkpoints holds a run with ghn.hidden_size = 8, but the config says 16",
        (
            *train,
            f"--workdir={tmp_path}/new",
            "--config.data.name=cifar10",
            f"--config.data.data_dir={tmp_path}",
        ): "data set 'cifar10' is not prepared in array_record format under",
        (
            *train,
            f"--workdir={tmp_path}/diverged",
            *diverges,
        ): "2 of the 4 architectures of the last 2",
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda case: run(*case), cases))
    for (status, output, errors), (case, message) in zip(results, cases.items(), strict=True):
        if "diverged" in str(case):
            # The architectures are named before.
            assert errors.count("is not finite; it is skipped\n") == 2
            errors = errors[errors.index("error: ") :]
        in_parsing = "--split" in str(case)
        assert_one_line((status, output, errors), message, 2 if in_parsing else 1)


@pytest.mark.parametrize(
    ("program", "some"),
    [
        ("train", ["--config FILE", "--workdir DIR", "--config.training.num_steps (default 1000)"]),
        ("evaluate", ["--ghn:", "--split: <train|val|test|", "--[no]random:", "--workdir:"]),
        ("generate", ["--split: <train|val|test|", "--output:", "--num_workers:"]),
        ("predict", ["--ghn:", "--architecture:", "--deepnets:", "--images:", "--logits:"]),
        ("convert", ["--ghn:", "--out:"]),
    ],
)
def test_help(program, some):
    status, output, errors = run(program, "--help")
    assert (status, errors) == (0, "")
    source = (ROOT / "ghn_jax" / "cli" / f"{program}.py").read_text()
    for flag in some:
        assert f"\n  {flag}" in output
    # Every flag the file defines, and its docstring.
    names = [line.split('"')[1] for line in source.split("flags.DEFINE_")[1:]]
    for name in names:
        assert f"--{name}:" in output or f"--[no]{name}:" in output
    assert output.startswith(source.split('"""')[1].strip())


def test_warmup_compiles_in_processes_onto_one_disk(tmp_path):
    flags = (SMOKE, f"--workdir={tmp_path}", "--num_architectures=6", "--coverage=0.2")
    status, output, errors = run("warmup", *flags, "--num_processes=2")
    assert (status, errors) == (0, "")
    folder = tmp_path / "compiled"
    number = int(output.split(" signatures, ")[0].split()[-1])
    assert f"programs in {folder}" in output and number >= 2
    files = {path.name for path in folder.iterdir()}
    assert len(files) >= number
    # Another process finds all of them: nothing new is written.
    status, output, errors = run("warmup", *flags, "--num_processes=1")
    assert (status, errors) == (0, "") and f"{number} signatures" in output
    assert {path.name for path in folder.iterdir()} >= files
    assert {
        p for p in {path.name for path in folder.iterdir()} - files if "atime" not in p
    } == set()
