"""Predicting, converting and evaluating official files, as a user runs it."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from program_runs import ROOT, run
from reference_predictions import LOCAL
from safetensors.numpy import load_file

from ghn_jax.interop.torch_files import read_torch_file

GHN = f"--ghn={LOCAL / 'ghn1.pt'}"
DEEPNETS = f"--deepnets={LOCAL}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images."""
    folder = tmp_path_factory.mktemp("images")
    with np.load(LOCAL / "images.npz") as file:
        images, labels = file["images"], file["labels"]
    np.save(folder / "images.npy", images)
    np.save(folder / "small.npy", images[:, :16, :16])
    np.savez(folder / "images.npz", images=images, labels=labels)
    return folder


def test_predicts_what_the_original_does(folder, tmp_path):
    status, output, errors = run(
        *("predict", GHN, "--architecture=val/2", DEEPNETS, f"--images={folder}/images.npy"),
        *(f"--logits={tmp_path}/y.npy", f"--out={tmp_path}/p.safetensors"),
    )
    assert (status, errors) == (0, "")
    index = {entry["name"]: entry for entry in json.loads((LOCAL / "index.json").read_text())}
    entry = index["val_2_ghn1"]
    shown = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert shown["nodes"] == str(entry["n_nodes"])
    assert shown["edges"].split()[0] == str(entry["n_edges"])
    assert shown["tensors"] == str(len(entry["tensors"]))
    assert shown["parameters"] == str(entry["n_params"])
    for name in ("graph", "prediction", "forward"):
        assert float(shown[name].removeprefix("pass").split()[0]) >= 0 and " s" in shown[name]
    state = load_file(tmp_path / "p.safetensors")
    assert set(state) == {tensor["name"] for tensor in entry["tensors"]}
    for tensor in entry["tensors"]:
        found = state[tensor["name"]]
        assert list(found.shape) == tensor["shape"] and found.dtype == np.float32
        largest = np.abs(found).max()
        first = found.ravel()[:4]
        np.testing.assert_allclose(first, tensor["first"], rtol=0, atol=1e-5 * largest)
    expected = np.load(LOCAL / "predict_val_2_ghn1.npz")["logits"]
    largest = np.abs(expected).max()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=0, atol=1e-5 * largest)


def test_converts_there_and_back(tmp_path):
    assert run("convert", GHN, f"--out={tmp_path}/run") == (0, f"wrote {tmp_path}/run\n", "")
    result = run("convert", f"--ghn={tmp_path}/run", f"--out={tmp_path}/again.pt")
    assert result == (0, f"wrote {tmp_path}/again.pt\n", "")
    first, second = (read_torch_file(p) for p in (LOCAL / "ghn1.pt", tmp_path / "again.pt"))
    assert first["config"] == second["config"]
    for name, tensor in first["state_dict"].items():
        np.testing.assert_array_equal(second["state_dict"][name], tensor)


def test_evaluates_networks_of_a_file(folder, tmp_path):
    """Network 2 of `val` alone is in the file; its accuracy is that of the original's logits."""
    deepnets = tmp_path / "deepnets"
    shutil.copytree(LOCAL, deepnets, ignore=lambda *_: {p.name for p in LOCAL.glob("*.pt")})
    meta = json.loads((deepnets / "deepnets1m_eval_meta.json").read_text())
    meta["val"]["nets"] = meta["val"]["nets"][2:]
    (deepnets / "deepnets1m_eval_meta.json").write_text(json.dumps(meta))
    with h5py.File(deepnets / "deepnets1m_eval.hdf5", "r+") as file:
        file.move("val/2", "val/0")
    flags = (GHN, "--split=val", f"--deepnets={deepnets}", f"--images={folder}/images.npz")
    status, output, errors = run("evaluate", *flags, f"--workdir={tmp_path}", "--norandom")
    assert (status, errors) == (0, "")
    expected = np.load(LOCAL / "predict_val_2_ghn1.npz")["logits_float64"]
    labels = np.load(LOCAL / "images.npz")["labels"]
    order = np.argsort(-expected, axis=1)
    top1 = np.mean(order[:, 0] == labels)
    top5 = np.mean((order[:, :5] == labels[:, None]).any(axis=1))
    line = f"val/0: 53 nodes, 480442 parameters, top-1 {100 * top1:.2f}%, top-5 {100 * top5:.2f}%"
    assert line in output.splitlines()
    summary = json.loads((tmp_path / "evaluation" / "val.json").read_text())
    assert (summary["split"], summary["num_architectures"]) == ("val", 1)
    assert (summary["top1_mean"], summary["top5_mean"]) == (top1, top5)
    (result,) = (tmp_path / "evaluation" / "val.jsonl").read_text().splitlines()
    assert json.loads(result)["num_parameters"] == 480442


def test_mistakes_give_one_line(folder, tmp_path):
    network = (GHN, "--architecture=val/2", DEEPNETS)
    cases = {
        (
            *("predict", *network, f"--images={folder}/small.npy", f"--logits={tmp_path}/y.npy"),
        ): f"{folder}/small.npy has shape (4, 16, 16, 3) and dtype float32, expected images of 32",
        (
            *("predict", *network, f"--images={folder}/images.npy"),
        ): f"--images is {folder}/images.npy and --logits is None, expected both or neither",
        (
            *("evaluate", GHN, "--split=val", DEEPNETS, "--num_architectures=4"),
            f"--images={folder}/images.npz",
        ): "num_architectures is 4, expected at most the 3 of split 'val'",
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda case: run(*case), cases))
    for (status, _, errors), message in zip(results, cases.values(), strict=True):
        assert status == 1 and errors.startswith(f"error: {message}"), errors
        assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


FACTORY = """
import flax.linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))

def make():
    return Net()
"""


def test_predicts_a_flax_module_of_ones_own(folder, tmp_path):
    # The package is found in the current folder, as `python -m` finds one.
    (tmp_path / "mine.py").write_text(FACTORY)
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "launch" / "predict.py"), GHN, "--architecture=mine:make"),
            *(f"--images={folder}/images.npy", "--logits=y.npy", "--out=p.npz"),
            '--arguments={"train": true}',
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    # conv 3 * 3 * 3 * 8 + 8, norm 2 * 8, dense 8 * 10 + 10, by hand.
    assert "330 of 330 parameters predicted, 6 tensors" in result.stdout
    assert np.load(tmp_path / "y.npy").shape == (4, 10)
    with np.load(tmp_path / "p.npz") as file:
        shapes = {name: file[name].shape for name in file}
    assert shapes["params/Conv_0/kernel"] == (3, 3, 3, 8)
    assert shapes["batch_stats/BatchNorm_0/mean"] == (8,)
