"""GHNs on the Hugging Face hub, against a stand-in of its client."""

import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from reference_predictions import LOCAL

import ghn_jax
from ghn_jax.interop.hub import fetch_from_hub
from ghn_jax.interop.locations import CHECKPOINTS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository `someone/ghns` with a file and a work directory; what is asked is listed."""
    asked = []
    (tmp_path / "files").mkdir()
    shutil.copy(LOCAL / "ghn1.pt", tmp_path / "files" / "ghn1.pt")
    shutil.copytree(CHECKPOINTS / "digits", tmp_path / "runs" / "digits")

    def hf_hub_download(repository, path, revision):
        asked.append((repository, path, revision))
        if repository != "someone/ghns":
            raise LocalEntryNotFoundError("the connection failed and nothing is in the cache")
        return str(tmp_path / path)

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, allow_patterns, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def assert_same_params(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found.ghn_params, expected.ghn_params)


def test_an_official_file(hub):
    ghn = ghn_jax.load("hf:someone/ghns@v2/files/ghn1.pt")
    assert hub == [("someone/ghns", "files/ghn1.pt", "v2")]
    assert_same_params(ghn, ghn_jax.load(LOCAL / "ghn1.pt"))


def test_a_work_directory(hub):
    ghn = ghn_jax.load("hf:someone/ghns/runs/digits")
    assert hub == [("someone/ghns", ["runs/digits/*"], None)]
    assert_same_params(ghn, ghn_jax.load("digits"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:ghns", r"^path is 'hf:ghns', expected hf:OWNER/NAME\[@REVISION\]\[/PATH\]$"),
        ("hf:other/ghns/x.pt", "which the hub does not provide: the connection failed"),
        ("hf:someone/ghns/nowhere", "but someone/ghns has no folder 'nowhere'"),
    ],
)
def test_errors(hub, spec, message):
    with pytest.raises(ValueError, match=message):
        fetch_from_hub(spec)
