"""Architectures for tests: every op, both stems, all heads, and the predefined networks."""

from ghn_jax.architectures import OPERATIONS, Architecture, Genotype, ResNet


def one_op(operation: str, **fields) -> Architecture:
    """A 4-cell network with `operation` at strides 1 and 2, next to a 1x1 convolution."""
    pairs = ((operation, 0), ("conv_1x1", 1), (operation, 1), ("skip_connect", 2))
    genotype = Genotype(pairs, (2, 3), pairs, (2, 3))
    fields = {"num_cells": 4, "channels": 8, **fields}
    return Architecture(genotype, **fields)


ONE_OP = {operation: one_op(operation) for operation in OPERATIONS}
VARIANTS = {
    "stem 1": one_op("conv_3x3", stem_type=1),
    "stem pool": one_op("max_pool_3x3", stem_pool=True),
    "no norm": one_op("sep_conv_3x3", norm=None),
    "flatten": one_op("dil_conv_3x3", global_pool=False),
    "two layers": one_op("cse", num_fc_layers=2, fc_size=16),
    "equal widths": one_op("avg_pool_3x3", channel_multiplier=1),
    "no preprocess": Architecture(
        Genotype(
            (("conv_3x3", 0), ("skip_connect", 1)), (2,), (("max_pool_3x3", 0), ("cse", 1)), (2,)
        ),
        num_cells=5,
        channels=8,
        preprocess=False,
        channel_multiplier=1,
    ),
}


def two_cells(*operations: str, **fields) -> Architecture:
    """A network of a normal and a reduction cell, each with all the operations: compiles fast."""
    pairs = tuple((operation, index % 2) for index, operation in enumerate(operations))
    steps = tuple(range(2, 2 + len(operations) // 2))
    genotype = Genotype(pairs, steps, pairs, steps)
    return Architecture(genotype, num_cells=2, channels=8, **fields)


# Every op at stride 1 and 2 and every block, in as few blocks as that takes.
COMPACT = {
    "convolutions": two_cells("conv_3x3", "conv_7x1_1x7", "sep_conv_3x3", "dil_conv_5x5"),
    "no norm": two_cells("sep_conv_5x5", "conv_5x5", norm=None, stem_pool=True),
    "flatten": two_cells("dil_conv_3x3", "conv_7x7", global_pool=False),
    "stem 1": two_cells(
        *("max_pool_3x3", "avg_pool_3x3", "skip_connect", "cse", "conv_1x1", "skip_connect"),
        stem_type=1,
        num_fc_layers=2,
        fc_size=16,
    ),
    "attention": two_cells("none", "none", "msa", "conv_1x1"),
    "no preprocess": VARIANTS["no preprocess"],
    "resnet": ResNet((1, 1, 1, 1)),
}
