"""Parameters as the original counts them."""

import json
from pathlib import Path

import pytest

from ghn_jax.architectures import Architecture, Genotype
from ghn_jax.sampling import SpaceConfig, count_parameters, sample_architecture
from ghn_jax.targets.plan import lower

OFFICIAL = json.loads((Path(__file__).parents[1] / "data/deepnets1m_nets.json").read_text())


def test_by_hand():
    genotype = Genotype(
        normal=(("conv_3x3", 0), ("skip_connect", 1)),
        normal_concat=(2,),
        reduce=(("sep_conv_5x5", 0), ("skip_connect", 1)),
        reduce_concat=(2,),
    )
    architecture = Architecture(genotype=genotype, num_cells=2, channels=8, channel_multiplier=2)
    stem = 3 * 9 * 24 + 2 * 24  # width 3C
    cell_0 = 2 * (24 * 8 + 16) + (9 * 8 * 8 + 16)  # preprocessing, conv_3x3
    reduction = (24 * 16 + 32) + (8 * 16 + 32)  # preprocessing of the stem and of cell 0
    separable = 2 * (25 * 16 + 16 * 16 + 32)
    strided_skip = 16 * 16 + 32
    head = 16 * 10 + 10
    expected = stem + cell_0 + reduction + separable + strided_skip + head
    assert count_parameters(architecture, image_size=32, num_classes=10) == expected


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=f"{split}-{index}")
        for split, entries in OFFICIAL.items()
        for index, entry in enumerate(entries)
    ],
)
def test_published_counts(entry):
    architecture = Architecture.from_official(entry, channels=32)
    counts = {
        "cifar10": count_parameters(architecture, 32, 10),
        "imagenet": count_parameters(architecture, 224, 10),
    }
    assert counts == entry["num_params"]


def test_agrees_with_the_plan_where_nothing_is_cut_off():
    operations = ("msa", "cse", "skip_connect", "conv_7x1_1x7", "sep_conv_3x3", "dil_conv_5x5")
    space = SpaceConfig(allowed_operations=operations, max_steps=1)
    for index in range(30):
        architecture = sample_architecture(space, seed=0, index=index)
        for image_size, num_classes in ((32, 10), (64, 7), (224, 1000)):
            plan = lower(architecture, image_size, num_classes)
            # Cells that read input 0 alone would leave every second cell unused; with two distinct
            # inputs per step and no `none`, everything is used.
            count = count_parameters(architecture, image_size, num_classes)
            assert count == plan.num_parameters
