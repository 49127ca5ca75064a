"""Networks in published results that no split generates: ResNet-50 and a small ViT.

In: nothing. Out: `PREDEFINED`, name -> description (the split `predefined` of Knyazev et al.,
NeurIPS 2021).
"""

from __future__ import annotations

from ghn_jax.architectures.genotype import Architecture, Genotype, ResNet

RESNET50 = ResNet(stage_sizes=(3, 4, 6, 3))

VIT = Architecture(
    genotype=Genotype(
        normal=(("none", 0), ("msa", 1)),
        normal_concat=(2,),
        reduce=(("none", 0), ("avg_pool_3x3", 1)),
        reduce_concat=(2,),
    ),
    num_cells=12,
    channels=128,
    preprocess=False,
    channel_multiplier=1,
    global_pool=True,
    num_fc_layers=1,
)
"""12 cells, two of them average pools of stride 1, so 10 attention blocks; one linear layer."""

PREDEFINED: dict[str, Architecture | ResNet] = {"resnet50": RESNET50, "vit": VIT}


def darts() -> Architecture:
    """Build the 20-cell network that DARTS found on CIFAR-10 (Liu et al., ICLR 2019, figure 4)."""
    return Architecture(
        genotype=Genotype(
            normal=(
                *(("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
                *(("sep_conv_3x3", 1), ("sep_conv_3x3", 1), ("skip_connect", 0)),
                *(("skip_connect", 0), ("dil_conv_3x3", 2)),
            ),
            normal_concat=(2, 3, 4, 5),
            reduce=(
                *(("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2)),
                *(("max_pool_3x3", 1), ("max_pool_3x3", 0), ("skip_connect", 2)),
                *(("skip_connect", 2), ("max_pool_3x3", 1)),
            ),
            reduce_concat=(2, 3, 4, 5),
        ),
        num_cells=20,
        channels=36,
        global_pool=True,
        num_fc_layers=1,
    )
