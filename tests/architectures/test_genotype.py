"""Descriptions of networks: validation texts and round trips with official entries."""

import dataclasses
import json
from pathlib import Path

import pytest

from ghn_jax.architectures import OPERATIONS, PREDEFINED, VIT, Architecture, Genotype, ResNet

OFFICIAL = json.loads((Path(__file__).parents[1] / "data/deepnets1m_nets.json").read_text())
ENTRIES = [
    pytest.param(entry, id=f"{split}-{index}")
    for split, entries in OFFICIAL.items()
    for index, entry in enumerate(entries)
]
DESCRIPTIVE_KEYS = {"num_nodes", "num_params"}

ONE_STEP = {
    "normal": [["conv_3x3", 0], ["msa", 1]],
    "normal_concat": [2],
    "reduce": [["max_pool_3x3", 1], ["skip_connect", 0]],
    "reduce_concat": [2],
}


def make_architecture(**fields):
    genotype = Genotype.from_dict(fields.pop("genotype", ONE_STEP))
    return Architecture(**{"genotype": genotype, "num_cells": 4, "channels": 16, **fields})


def test_operations_are_the_published_fifteen():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 15
    assert OPERATIONS[0] == "none" and OPERATIONS[-2:] == ("msa", "cse")


def test_genotype_accepts_ranges_and_lists():
    pairs = [("sep_conv_3x3", 0), ("none", 1), ["cse", 2], ["conv_1x1", 0]]
    genotype = Genotype.from_dict(
        {"normal": pairs, "normal_concat": range(2, 4), "reduce": pairs, "reduce_concat": [3]}
    )
    assert genotype.num_steps == 2
    assert genotype.normal_concat == (2, 3)
    assert genotype.normal[2] == ("cse", 2)
    assert hash(genotype) == hash(Genotype.from_dict(genotype.to_dict()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"normal": [["conv_3x4", 0], ["msa", 1]]},
            r"genotype\.normal\[0\] has the unknown operation 'conv_3x4' \(did you mean 'conv_3x3'",
        ),
        (
            {"reduce": [["max_pool_3x3", 0], ["msa", 2]]},
            r"genotype\.reduce\[1\] reads input 2, expected 0\.\.1",
        ),
        ({"normal": [["msa", True], ["msa", 1]]}, r"genotype\.normal\[0\] reads input True"),
        ({"normal": [["msa", 0]]}, r"genotype\.normal is .*expected a non-empty tuple of an even"),
        ({"normal": [["msa", 0, 1], ["msa", 1]]}, r"genotype\.normal\[0\] is .*expected a pair"),
        (
            {"reduce": [["msa", 0]] * 4},
            r"genotype\.reduce has 4 operations, expected 2, as many as genotype\.normal",
        ),
        ({"normal_concat": [3]}, r"genotype\.normal_concat contains 3, expected states in 2\.\.2"),
        ({"reduce_concat": [1]}, r"genotype\.reduce_concat contains 1"),
        ({"reduce_concat": []}, r"genotype\.reduce_concat is \(\), expected a non-empty tuple"),
        ({"reduce_concat": [2, 2]}, r"genotype\.reduce_concat is \(2, 2\), expected distinct"),
        ({"reduce_concat": "2"}, r"genotype\.reduce_concat is '2', expected a sequence"),
        ({"normal_conact": [2]}, r"unknown key 'normal_conact' \(did you mean 'normal_concat'\?\)"),
    ],
)
def test_genotype_errors_name_field_value_and_expectation(change, message):
    with pytest.raises(ValueError, match=message):
        Genotype.from_dict({**ONE_STEP, **change})


def test_genotype_lacking_a_key():
    with pytest.raises(ValueError, match="genotype lacks the key 'reduce_concat'"):
        Genotype.from_dict({key: ONE_STEP[key] for key in ("normal", "normal_concat", "reduce")})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_cells": 0}, "num_cells is 0, expected a positive int"),
        ({"channels": 16.0}, r"channels is 16\.0, expected a positive int"),
        ({"channels": 12}, "channels is 12, expected a multiple of 8, the number of attention"),
        ({"stem_type": 2}, "stem_type is 2, expected 0, 1"),
        ({"stem_type": True}, "stem_type is True, expected 0, 1"),
        ({"stem_kernel": 4}, "stem_kernel is 4, expected an odd number"),
        ({"norm": "bacth"}, r"norm is 'bacth' \(did you mean 'batch'\?\), expected 'batch', None"),
        ({"channel_multiplier": 3}, "channel_multiplier is 3, expected 1, 2"),
        ({"stem_pool": True, "stem_type": 1}, "stem_pool is True with stem_type 1"),
        (
            {"preprocess": False, "channel_multiplier": 2},
            "preprocess is False with 1 steps and channel_multiplier 2, expected True",
        ),
        ({"num_fc_layers": 0}, "num_fc_layers is 0"),
        ({"fc_size": -1}, "fc_size is -1"),
        ({"global_pool": 1}, "global_pool is 1, expected False, True"),
    ],
)
def test_architecture_errors_name_field_value_and_expectation(fields, message):
    with pytest.raises(ValueError, match=message):
        make_architecture(**fields)


def test_widths_without_attention_need_only_be_even():
    genotype = {**ONE_STEP, "normal": [["conv_3x3", 0], ["conv_1x1", 1]]}
    assert make_architecture(genotype=genotype, channels=12).channels == 12
    with pytest.raises(ValueError, match="channels is 13, expected an even number"):
        make_architecture(genotype=genotype, channels=13)


def test_two_steps_need_preprocessing():
    cell = [["conv_3x3", 0], ["msa", 1]] * 2
    genotype = {
        "normal": cell,
        "normal_concat": [3],
        "reduce": cell,
        "reduce_concat": [3],
    }
    with pytest.raises(ValueError, match="preprocess is False with 2 steps"):
        make_architecture(genotype=genotype, channel_multiplier=1, preprocess=False)


def test_unknown_field_gets_a_near_match():
    values = make_architecture().to_dict()
    with pytest.raises(ValueError, match=r"unknown key 'num_cell' \(did you mean 'num_cells'\?\)"):
        Architecture.from_dict({**values, "num_cell": 3})


@pytest.mark.parametrize(
    ("num_cells", "reductions"), [(1, []), (2, [1]), (4, [1, 2]), (9, [3, 6]), (18, [6, 12])]
)
def test_reduction_cells(num_cells, reductions):
    architecture = make_architecture(num_cells=num_cells)
    found = [cell for cell in range(num_cells) if architecture.is_reduction(cell)]
    assert found == reductions


@pytest.mark.parametrize("entry", ENTRIES)
def test_official_round_trip(entry):
    architecture = Architecture.from_official(entry, channels=entry.get("C", 32))
    official = json.loads(json.dumps(architecture.to_official()))
    assert {**official, **entry} == {**entry, "C": architecture.channels}
    through_json = json.loads(json.dumps(architecture.to_dict()))
    assert Architecture.from_dict(through_json) == architecture
    assert architecture.has_attention == ("msa" in json.dumps(entry))


def test_official_entry_by_hand():
    architecture = Architecture.from_official(
        {
            "genotype": ONE_STEP,
            "n_cells": 7,
            "stem_type": 1,
            "stem_pool": False,
            "ks": 5,
            "norm": None,
            "preproc": False,
            "C_mult": 1,
            "glob_avg": True,
            "fc_layers": 2,
            "fc_dim": 256,
        },
        channels=48,
        fc_size=128,
    )
    assert architecture == Architecture(
        genotype=Genotype(
            normal=(("conv_3x3", 0), ("msa", 1)),
            normal_concat=(2,),
            reduce=(("max_pool_3x3", 1), ("skip_connect", 0)),
            reduce_concat=(2,),
        ),
        num_cells=7,
        channels=48,
        stem_type=1,
        stem_kernel=5,
        norm=None,
        preprocess=False,
        channel_multiplier=1,
        num_fc_layers=2,
        fc_size=128,
    )


def test_official_errors():
    entry = OFFICIAL["train"][0]
    with pytest.raises(ValueError, match="channels is None and the nets entry has no 'C'"):
        Architecture.from_official(entry)
    with pytest.raises(ValueError, match=r"'norm' is 'bnrm' \(did you mean 'bnorm'\?\)"):
        Architecture.from_official({**entry, "norm": "bnrm"}, channels=32)
    with pytest.raises(ValueError, match="nets entry lacks the key 'n_cells'"):
        Architecture.from_official(
            {key: entry[key] for key in entry if key != "n_cells"}, channels=32
        )


def test_predefined():
    assert set(PREDEFINED) == {"resnet50", "vit"}
    assert (VIT.num_cells, VIT.channels, VIT.preprocess, VIT.channel_multiplier) == (
        12,
        128,
        False,
        1,
    )
    assert VIT.has_attention and VIT.global_pool
    assert PREDEFINED["resnet50"] == ResNet((3, 4, 6, 3))


def test_resnet_validation_and_round_trip():
    assert ResNet.from_dict(ResNet((2, 2, 2, 2)).to_dict()) == ResNet((2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"stage_sizes\[1\] is 0, expected a positive int"):
        ResNet((3, 0, 6, 3))
    with pytest.raises(ValueError, match=r"stage_sizes is \(3,\), expected a tuple of four"):
        ResNet((3,))


def test_architectures_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_architecture().channels = 3


@pytest.mark.parametrize(
    ("field", "value", "most"),
    [
        ("num_cells", 10**9, 1000),
        ("num_fc_layers", 10**7, 100),
        ("channels", 2**20, 65536),
        ("fc_size", 10**9, 65536),
        ("stem_kernel", 1001, 255),
    ],
)
def test_sizes_have_limits(field, value, most):
    cell = (("conv_3x3", 0), ("conv_3x3", 1))
    values = {"genotype": Genotype(cell, (2,), cell, (2,)), "num_cells": 3, "channels": 16}
    with pytest.raises(ValueError, match=f"^{field} is {value}, expected at most {most}$"):
        Architecture(**{**values, field: value})


def test_genotypes_have_limits():
    cell = (("conv_3x3", 0),) * 202
    with pytest.raises(ValueError, match="normal has 202 operations, expected at most 200"):
        Genotype(cell, (2,), cell, (2,))
    with pytest.raises(ValueError, match="has the unknown operation "):
        Genotype((({}, 0), ("conv_3x3", 1)), (2,), cell[:2], (2,))
