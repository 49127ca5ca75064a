"""Official checkpoints to Orbax and back: not a bit changes; `ghn_jax.load` reads both."""

import jax
import numpy as np
import pytest
from reference_predictions import LOCAL

import ghn_jax
from ghn_jax.interop.checkpoint_conversion import convert_to_orbax, convert_to_torch
from ghn_jax.interop.torch_checkpoints import (
    load_torch_checkpoint,
    save_torch_checkpoint,
)
from ghn_jax.interop.torch_files import read_torch_file
from ghn_jax.training.checkpoint_files import CheckpointError


@pytest.mark.parametrize(
    ("name", "image_size", "num_classes", "data"),
    [
        ("ghn1", 32, 10, "cifar10"),
        ("mlp", 32, 10, "cifar10"),
        ("ghn2_imagenet", 224, 1000, "imagenet2012"),
    ],
)
def test_round_trip_is_exact(tmp_path, name, image_size, num_classes, data):
    checkpoint = load_torch_checkpoint(LOCAL / f"{name}.pt")._replace(epoch=299)
    save_torch_checkpoint(tmp_path / "a.pt", checkpoint)
    convert_to_orbax(tmp_path / "a.pt", tmp_path / "run")
    convert_to_torch(tmp_path / "run", tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    # Everything PyTorch wrote is there, in its order of axes and under its name.
    official, again = (read_torch_file(p) for p in (LOCAL / f"{name}.pt", tmp_path / "b.pt"))
    assert again["config"] == official["config"] and again["epoch"] == 299
    assert set(again["state_dict"]) == set(official["state_dict"])
    for key, tensor in official["state_dict"].items():
        np.testing.assert_array_equal(again["state_dict"][key], tensor)
    from_file, from_folder = ghn_jax.load(LOCAL / f"{name}.pt"), ghn_jax.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, from_file.ghn_params, from_folder.ghn_params)
    assert from_file.experiment == from_folder.experiment
    space = from_file.experiment.space
    assert (space.image_size, space.num_classes) == (image_size, num_classes)
    assert from_file.experiment.data.name == data


def test_own_ghns_become_official(tmp_path):
    convert_to_torch("digits", tmp_path / "digits.pt")
    found, expected = load_torch_checkpoint(tmp_path / "digits.pt"), ghn_jax.load("digits")
    jax.tree.map(np.testing.assert_array_equal, found.variables["params"], expected.ghn_params)
    assert found.config == expected.config and found.epoch == 0


def test_errors(tmp_path):
    convert_to_torch("digits", tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt exists, expected a new file"):
        convert_to_torch("digits", tmp_path / "x.pt")
    with pytest.raises(ValueError, match="exists, expected a new or empty folder"):
        convert_to_orbax(tmp_path / "x.pt", tmp_path)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        convert_to_torch(tmp_path / "nowhere", tmp_path / "y.pt")
    with pytest.raises(ValueError, match="expected an official checkpoint: no such file"):
        ghn_jax.load(tmp_path / "nowhere.pt")
    (tmp_path / "z.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"z\.pt is not a zip archive"):
        convert_to_orbax(tmp_path / "z.pt", tmp_path / "run")
    assert not (tmp_path / "run").exists()
