"""Every number of the reference is reached: what `python -m ghn_jax.interop.parity` prints.

Without GHN_JAX_REFERENCE the part in `tests/data/reference` is compared.
"""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from reference_predictions import FOLDER, LOCAL, WHOLE, skip_for_want_of

from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.interop.parity import (
    LIMITS,
    Deviation,
    Parity,
    default_reference,
    deviations_table,
    largest_by_kind,
    main,
    node_order,
)
from ghn_jax.interop.reference import Reference

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def parity():
    return Parity(Reference(FOLDER))


def check(deviations, kinds):
    largest = largest_by_kind(deviations)
    assert set(largest) == set(kinds)
    wrong = [d for d in largest.values() if not d.value <= LIMITS[d.kind]]
    assert not wrong, wrong


@pytest.mark.parametrize("name", Reference(FOLDER).prediction_names())
def test_predictions_are_the_originals(parity, name):
    deviations = list(parity.measure_prediction(name, with_float64=False))
    kinds = {"nodes and edges", "node embeddings", "predicted tensors"}
    found = parity.reference.prediction(name)
    plan = found.network.plan
    assert sum(d.kind == "predicted tensors" for d in deviations) == len(plan.tensors)
    if found.images is not None:
        norm = getattr(plan.architecture, "norm", "batch")
        no_norm = norm is None or name.startswith("vit")
        suffix = ", no batch norm" if no_norm else ""
        kinds.add("logits, deep networks" if name.startswith("deep") else f"logits{suffix}")
    if any(tensor.values is not None for tensor in found.tensors.values()):
        kinds.add("logits, float64, the original's parameters")
    check(deviations, kinds)


@pytest.mark.parametrize("name", ["deep_0_ghn2", "deep_1_ghn2", "deep_2_ghn2"])
def test_embeddings_are_rounded_no_more_than_the_originals(parity, name, x64):
    if name not in parity.reference.prediction_names():
        skip_for_want_of(f"predict_{name}.npz")
    found = parity.reference.prediction(name)
    _, graph = found.network
    checkpoint = parity.reference.ghn(found.ghn_name)
    single = checkpoint.variables["params"]
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), single)
    predictor = Predictor(checkpoint.config)
    prepared = predictor.prepare([graph])
    (exact,) = predictor.embed_nodes(double, prepared)
    assert exact.dtype == np.float64
    (ours,) = Predictor(checkpoint.config).embed_nodes(single, prepared)
    originals = found.embeddings[node_order(graph, found)]

    def error(embeddings):
        return np.sqrt(np.mean((embeddings - exact) ** 2) / np.mean(exact**2))

    assert 1e-8 < error(ours) <= error(originals) < 1e-6


@pytest.mark.parametrize("name", Reference(FOLDER).training_step_names())
def test_training_steps_are_the_originals(parity, name):
    deviations = list(parity.measure_training_step(name))
    dtype = name.rsplit("_", 1)[1]
    check(deviations, {f"{k}, {dtype}" for k in ("losses", "gradient norm", "gradients")})
    assert sum(d.kind.startswith("gradients") for d in deviations) >= 20
    assert sum(d.kind.startswith("losses") for d in deviations) == 2


def test_orthogonalisation_is_the_originals(parity):
    deviations = list(parity.measure_orthogonalization())
    assert len(deviations) == 5
    check(deviations, {"orthogonalisation"})


def test_all_files_of_the_reference_are_compared():
    if WHOLE is None:
        skip_for_want_of("all of it")
    reference = Reference(WHOLE)
    files = {path.stem for path in WHOLE.glob("*.npz")}
    names = {f"predict_{name}" for name in reference.prediction_names()}
    names |= {f"train_step_{name}" for name in reference.training_step_names()}
    assert files - names == {"images", "orthogonalize"}
    assert len(names) == 27 + 4


def test_the_part_in_the_repository_is_whole_and_small():
    assert sum(path.stat().st_size for path in LOCAL.iterdir()) < 3e6
    reference = Reference(LOCAL)
    assert set(reference.prediction_names()) == {"val_2_ghn1", "val_2_mlp", "resnet50_imagenet"}
    assert reference.training_step_names() == ["ghn1_float32", "ghn1_float64"]
    assert len(reference.orthogonalizations()) == 5


@pytest.mark.slow
def test_one_command_prints_the_table(capsys):
    assert main(["--reference", str(FOLDER)]) == 0
    output = capsys.readouterr().out
    assert "largest relative deviation" in output
    for kind in ("node embeddings", "predicted tensors", "gradients, float64"):
        assert kind in output


def test_largest_deviations_by_hand():
    deviations = [
        Deviation("logits", "a", 1e-6),
        Deviation("logits", "b", 3e-3),
        Deviation("node embeddings", "a", math.nan),
        Deviation("node embeddings", "b", math.inf),
    ]
    largest = largest_by_kind(deviations)
    assert list(largest) == ["node embeddings", "logits"]
    assert largest["logits"].where == "b"
    assert not largest["node embeddings"].value <= 1
    table = deviations_table(deviations)
    assert list(table.columns[2].cells) == ["nan !", "3.0e-03 !"]


def test_a_wrong_number_is_noticed(parity):
    """A parameter of the hypernetwork off by a thousandth is beyond the limits."""
    reference = Reference(FOLDER)
    checkpoint = reference.ghn("ghn1")
    bias = checkpoint.variables["params"]["gnn"]["gru_message_bias"]
    bias += np.float32(1e-3)
    deviations = list(Parity(reference).measure_prediction("val_2_ghn1", with_float64=False))
    largest = largest_by_kind(deviations)
    assert largest["node embeddings"].value > 10 * LIMITS["node embeddings"]
    assert largest["predicted tensors"].value > 10 * LIMITS["predicted tensors"]


def test_the_folder_is_named_or_that_of_a_clone(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("GHN_JAX_REFERENCE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2
    message = "reference is missing, expected --reference or GHN_JAX_REFERENCE: a folder with index"
    assert message in " ".join(capsys.readouterr().err.split())
    (tmp_path / "tests/data/reference").mkdir(parents=True)
    (tmp_path / "tests/data/reference/index.json").write_text("[]")
    assert default_reference() == Path("tests/data/reference")
    monkeypatch.setenv("GHN_JAX_REFERENCE", "/elsewhere")
    assert default_reference() == Path("/elsewhere")


def test_errors(tmp_path, capsys):
    with pytest.raises(ValueError, match="expected a folder with index.json"):
        Reference(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(["--reference", str(tmp_path)])
    assert error.value.code == 2 and "expected a folder with index.json" in capsys.readouterr().err
