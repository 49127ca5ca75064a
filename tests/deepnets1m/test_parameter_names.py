"""Names of parameters and nodes against those in files of the original."""

import json
from pathlib import Path

import h5py
import pytest

from ghn_jax.architectures import RESNET50, Architecture, Genotype, ResNet
from ghn_jax.deepnets1m.parameter_names import node_names, torch_parameter_names
from ghn_jax.sampling import SpaceConfig, sample_architecture
from ghn_jax.targets.plan import lower

DATA = Path(__file__).parents[1] / "data"
META = json.loads((DATA / "deepnets1m_eval_meta.json").read_text())


@pytest.mark.parametrize(("split", "index"), [("test", 0), ("test", 1), ("wide", 0), ("bnfree", 0)])
def test_names_of_parameters_in_published_files(split, index):
    names = META[split]["meta"]["unique_op_names"]
    with h5py.File(DATA / "deepnets1m_eval.hdf5") as file:
        rows = file[f"{split}/{index}/nodes"][()].tolist()
    # Nodes without parameters have no dot in their name and may count to another cell.
    expected = {(cell, names[str(name)]) for _, cell, name in rows if "." in names[str(name)]}
    plan = lower(Architecture.from_official(META[split]["nets"][index]), 32, 10)
    assert {tuple(name) for name in node_names(plan) if "." in name.name} == expected


def test_names_by_hand():
    genotype = Genotype(
        normal=(("conv_7x1_1x7", 0), ("cse", 1)),
        normal_concat=(2,),
        reduce=(("sep_conv_3x3", 0), ("skip_connect", 1)),
        reduce_concat=(2,),
    )
    architecture = Architecture(
        genotype=genotype, num_cells=2, channels=8, num_fc_layers=2, fc_size=4
    )
    names = torch_parameter_names(lower(architecture, 32, 10))
    assert names[:3] == ("stem.0.weight", "stem.1.weight", "stem.1.bias")
    assert names[-4:] == (
        "classifier.0.weight",
        "classifier.0.bias",
        "classifier.3.weight",
        "classifier.3.bias",
    )
    assert {name for name in names if name.startswith("cells.0._ops")} == {
        "cells.0._ops.0.op.1.weight",
        "cells.0._ops.0.op.2.weight",
        "cells.0._ops.0.op.3.weight",
        "cells.0._ops.0.op.3.bias",
        "cells.0._ops.1.fc1.weight",
        "cells.0._ops.1.fc1.bias",
        "cells.0._ops.1.fc2.weight",
        "cells.0._ops.1.fc2.bias",
    }
    assert {name for name in names if name.startswith("cells.1._ops.1")} == {
        "cells.1._ops.1.conv_1.weight",
        "cells.1._ops.1.conv_2.weight",
        "cells.1._ops.1.bn.weight",
        "cells.1._ops.1.bn.bias",
    }


@pytest.mark.parametrize("split", ["train", "dense", "bnfree", "search"])
def test_names_tell_all_parameters_apart(split):
    for index in range(50):
        plan = lower(sample_architecture(SpaceConfig(split=split), 0, index), 32, 10)
        names = torch_parameter_names(plan)
        assert len(names) == len(set(names)) == len(plan.tensors)
        nodes = node_names(plan)
        assert len(nodes) == len(plan.nodes)
        assert [name.cell for name in nodes] == sorted(name.cell for name in nodes)


def test_names_of_resnets_by_hand():
    plan = lower(ResNet((1, 2, 1, 1)), 224, 10)
    names = torch_parameter_names(plan)
    assert len(names) == len(set(names)) == len(plan.tensors)
    by_path = dict(zip(("/".join(t.path) for t in plan.tensors), names, strict=True))
    assert by_path["stem_conv/kernel"] == "conv1.weight"
    assert by_path["stem_norm/bias"] == "bn1.bias"
    assert by_path["stage1_block1_conv3_conv/kernel"] == "layer2.1.conv3.weight"
    assert by_path["stage3_block0_conv2_norm/scale"] == "layer4.0.bn2.weight"
    assert by_path["stage0_block0_shortcut_conv/kernel"] == "layer1.0.downsample.0.weight"
    assert by_path["stage0_block0_shortcut_norm/bias"] == "layer1.0.downsample.1.bias"
    assert names[-2:] == ("fc.weight", "fc.bias")


def test_only_networks_of_cells_have_names_of_nodes():
    with pytest.raises(ValueError, match="plan is of a ResNet, expected an Architecture"):
        node_names(lower(RESNET50, 32, 10))
