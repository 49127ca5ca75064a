"""What `--architecture` means, and what is refused."""

import sys

import numpy as np
import pytest
from reference_predictions import LOCAL

from ghn_jax.architectures import RESNET50, VIT
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.evaluation.architecture_specs import is_stored, resolve_architecture
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

DATA = LOCAL.parent


def resolve(spec, image_size=32, num_classes=10, deepnets=DATA):
    return resolve_architecture(spec, image_size, num_classes, 50, deepnets)


def same_graph(first, second):
    for field in ("primitive", "shape", "senders", "receivers", "distance"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_networks_of_files_have_the_files_graph():
    network = resolve("test/1", num_classes=7)
    nets = DeepNets1M(DATA, "test")
    assert network.plan == lower(nets[1].architecture, 32, 7)
    same_graph(network.graph, nets.graph(1, num_classes=7))
    assert [t.path for t in network.graph.tensors] == [t.path for t in network.plan.tensors]
    # Rows of such files are out of order, so this is not the graph of the plan.
    assert np.any(network.graph.primitive != build_graph(network.plan).primitive)
    # `wide` is four times as wide for small images, twice for large ones.
    assert resolve("wide/0").plan.architecture.channels == 64
    assert resolve("wide/0", image_size=224).plan.architecture.channels == 32


@pytest.mark.parametrize("image_size", [32, 224])
def test_predefined_networks(image_size):
    for spec, architecture in (("resnet50", RESNET50), ("vit", VIT)):
        network = resolve(spec, image_size, num_classes=1000, deepnets=None)
        plan = lower(architecture, image_size, 1000)
        assert network.plan == plan
        same_graph(network.graph, build_graph(plan))
    stem = resolve("resnet50", image_size).plan.tensors[0]
    assert stem.shape == ((7, 7, 3, 64) if image_size == 224 else (3, 3, 3, 64))


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_networks").mkdir()
    (tmp_path / "my_networks" / "__init__.py").write_text("")
    (tmp_path / "my_networks" / "small.py").write_text(
        "import dataclasses\n"
        "from ghn_jax.architectures import VIT, ResNet\n"
        "def narrow(): return dataclasses.replace(VIT, channels=16)\n"
        "def shallow(): return ResNet((1, 1, 1, 1))\n"
        "def wrong(): return 3\n"
        "def needs(x): return x\n"
        "CONSTANT = 1\n"
    )
    (tmp_path / "my_networks" / "broken.py").write_text("import not_a_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_networks.small"
    for name in [name for name in sys.modules if name.startswith("my_networks")]:
        del sys.modules[name]


def test_factories(module):
    assert resolve(f"{module}:narrow").plan.architecture.channels == 16
    assert resolve(f"{module}:shallow").plan.architecture.stage_sizes == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "resnet5",
            r"'resnet5' \(did you mean 'resnet50'\?\), expected SPLIT/INDEX",
        ),
        ("test", "architecture is 'test'.*, expected SPLIT/INDEX"),
        ("tset/0", r"split is 'tset' \(did you mean 'test'\?\)"),
        ("test/2", r"architecture is 'test/2', expected an index in 0\.\.1: .*eval.hdf5 has 2 net"),
        ("test/-1", r"architecture is 'test/-1', expected an index in 0\.\.1"),
        ("val/0", "has no split 'val', expected one of test, wide, bnfree"),
        ("my_networks.small:shalow", r"has no function 'shalow' \(did you mean 'shallow'\?\)"),
        ("my_networks.small:CONSTANT", "has no function 'CONSTANT'"),
        ("my_networks.large:f", "my_networks.large cannot be imported: No module named"),
        ("my_networks.broken:f", "my_networks.broken cannot be imported: .*not_a_module"),
        ("my_networks.small:wrong", "makes a int, expected an Architecture or a ResNet"),
        ("my_networks.small:needs", r"needs\(\) fails, expected a function without arguments"),
    ],
)
def test_mistakes(module, spec, message):
    with pytest.raises(ValueError, match=message):
        resolve(spec)


def test_files_need_a_folder():
    with pytest.raises(ValueError, match="architecture is 'val/3', expected --deepnets"):
        resolve("val/3", deepnets=None)
    assert is_stored("val/3") and is_stored("val/-3")
    assert not is_stored("resnet50") and not is_stored("a.b:c")
