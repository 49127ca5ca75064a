"""The 15 node types of DeepNets-1M, in the order of published checkpoints (id = index)."""

PRIMITIVES: tuple[str, ...] = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)

PRIMITIVE_INDEX: dict[str, int] = {name: index for index, name in enumerate(PRIMITIVES)}
