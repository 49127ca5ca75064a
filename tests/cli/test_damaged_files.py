"""Programs that are given damaged files: a status, one line that names the file, no traceback."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from program_runs import ROOT, run
from reference_predictions import LOCAL
from small_run import SECTIONS

import ghn_jax
from ghn_jax.hypernetworks import initialize
from ghn_jax.training.config import ExperimentConfig

# One process for all calls of a program, as importing takes most of the time. What is left of a
# failure complains, if at all, when it is collected.
CALLS = """
import gc, json, os, sys, tempfile
from ghn_jax.cli.main import main

for arguments in json.loads(sys.argv[1]):
    sys.stderr.flush()
    with tempfile.TemporaryFile() as errors:
        kept = os.dup(2)
        os.dup2(errors.fileno(), 2)
        try:
            main(["ghn-jax", *arguments])
        except SystemExit as end:
            status = end.code
        gc.collect()
        sys.stderr.flush()
        os.dup2(kept, 2)
        errors.seek(0)
        print(json.dumps([status, errors.read().decode()]), flush=True)
"""


def call(*calls):
    """Make calls of one program in one process; return the status and the errors of each."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(calls), done
    return [json.loads(line) for line in lines]


def assert_one_line(status, errors, path, expected_status=1):
    assert status == expected_status, (path, errors)
    assert errors.startswith("error: ") and errors.count("\n") == 1, (path, errors)
    assert str(path) in errors and len(errors) < 2100, (path, errors)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) * 2 // 3, 7):
        content[place] ^= 0xFF
    path.write_bytes(content)


DAMAGES = (cut, empty, flip)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A GHN that was not trained, as the folder of a run."""
    folder = tmp_path_factory.mktemp("ghn") / "run"
    config = ExperimentConfig.from_dict(SECTIONS)
    ghn_params = initialize(config.ghn, jax.random.key(0))["params"]
    ghn_jax.GHN(config.ghn, ghn_params, config).save(folder)
    return folder


@pytest.fixture
def damaged_runs(workdir, tmp_path):
    """Copies of the run: for each damage one of its JSON, and one of its arrays."""
    paths = []
    for damage in DAMAGES:
        for name in ("run/metadata", "ghn_params/manifest.ocdbt", "ghn_params/d"):
            copy = tmp_path / f"{damage.__name__}_{name.replace('/', '_')}"
            shutil.copytree(workdir, copy)
            chosen = copy / "checkpoints" / "0" / name
            for file in chosen.iterdir() if chosen.is_dir() else [chosen]:
                damage(file)
            paths.append(copy)
    return paths


def damaged_copies(source, folder, damages=DAMAGES):
    paths = []
    for damage in damages:
        paths.append(folder / f"{damage.__name__}_{source.name}")
        shutil.copy(source, paths[-1])
        damage(paths[-1])
    return paths


def test_convert(damaged_runs, tmp_path):
    paths = [*damaged_copies(LOCAL / "mlp.pt", tmp_path), *damaged_runs]
    calls = [
        ["convert", f"--ghn={path}", f"--out={tmp_path}/new{i}"] for i, path in enumerate(paths)
    ]
    for path, result in zip(paths, call(*calls), strict=True):
        assert_one_line(*result, path)
    assert not list(tmp_path.glob("new*"))


def test_predict(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((2, 32, 32, 3), np.float32))
    # Other values are other images.
    images = damaged_copies(tmp_path / "images.npy", tmp_path, (cut, empty))
    networks = damaged_copies(LOCAL / "deepnets1m_eval.hdf5", tmp_path)
    for path in networks:
        (tmp_path / path.stem).mkdir()
        shutil.copy(LOCAL / "deepnets1m_eval_meta.json", tmp_path / path.stem)
        path.rename(tmp_path / path.stem / "deepnets1m_eval.hdf5")
    folders = [tmp_path / path.stem for path in networks]
    shared = ["predict", f"--ghn={LOCAL / 'mlp.pt'}"]
    # What a call sets holds for the next ones.
    calls = [[*shared, "--architecture=val/2", f"--deepnets={path}"] for path in folders]
    logits = ["--architecture=resnet50", f"--logits={tmp_path}/logits.npy"]
    calls += [[*shared, *logits, f"--images={path}"] for path in images]
    for path, result in zip([*folders, *images], call(*calls), strict=True):
        assert_one_line(*result, path)


def test_evaluate(workdir, damaged_runs, tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8, 3), np.float32), labels=[0, 1])
    images = damaged_copies(tmp_path / "images.npz", tmp_path)
    calls = [["evaluate", f"--ghn={path}", "--split=test"] for path in damaged_runs]
    calls += [["evaluate", f"--ghn={workdir}", f"--images={path}"] for path in images]
    for path, result in zip([*damaged_runs, *images], call(*calls), strict=True):
        assert_one_line(*result, path)


def test_train(workdir, damaged_runs, tmp_path):
    """Config files are read when the command line is parsed: a process for each."""
    own = tmp_path / "own.npz"
    np.savez(own, images=np.zeros((20, 8, 8, 3), np.uint8), labels=np.arange(20) % 10)
    cut(own)
    config = tmp_path / "cut.py"
    shutil.copy(ROOT / "launch" / "configs" / "smoke.py", config)
    cut(config)
    goes_on = tmp_path / "goes_on"
    shutil.copytree(workdir, goes_on)
    (goes_on / "metrics.jsonl").write_text('{"step": 0}\n{"step": nothing}\n')
    smoke = "--config=launch/configs/smoke.py"
    sections = [
        f"--config.{section}.{name}={value}"
        for section, fields in SECTIONS.items()
        for name, value in fields.items()
    ]
    cases = {
        own: ("train", smoke, f"--workdir={tmp_path}/new", f"--config.data.name=npz:{own}"),
        config: ("train", f"--config={config}", f"--workdir={tmp_path}/new"),
        damaged_runs[2]: ("train", smoke, f"--workdir={damaged_runs[2]}"),
        goes_on: ("train", smoke, f"--workdir={goes_on}", *sections),
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda case: run(*case), cases.values()))
    for path, (status, _, errors) in zip(cases, results, strict=True):
        assert_one_line(status, errors, path, 2 if path == config else 1)
