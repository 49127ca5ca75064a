"""Names of parameters in PyTorch networks and in DeepNets-1M files.

In: a plan. Out: for every parameter tensor, the name of its counterpart in the `state_dict` of the
original's `Network`, e.g. `cells.3._ops.0.op.1.weight`, or of torchvision's `ResNet`, e.g.
`layer1.0.conv1.weight`; for every node in the graph of a network of cells, the cell it belongs to
and its name in published files, which is the same without `cells.3.`.

Positions such as `op.1` count the modules of a PyTorch Sequential, including relus.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ghn_jax.architectures import Architecture, ResNet
from ghn_jax.targets.plan import Plan

_CELL_CALL = re.compile(r"cell(?P<cell>\d+)_(?P<input>preprocess\d|op\d+)_?(?P<part>\w*)")

_STEM_MODULES = {
    "stem": "stem0",
    "stem_conv": "stem.0",
    "stem_norm": "stem.1",
    "stem0_first_conv": "stem0.0",
    "stem0_first_norm": "stem0.1",
    "stem0_second_conv": "stem0.3",
    "stem0_second_norm": "stem0.4",
    "stem1_conv": "stem1.1",
    "stem1_norm": "stem1.2",
}
# The parts of a cell's operation; the position of a plain `norm` depends on what precedes it.
_PART_MODULES = {
    "conv": "op.1",
    "row": "op.1",
    "column": "op.2",
    "depthwise": "op.1",
    "pointwise": "op.2",
    "first_depthwise": "op.1",
    "first_pointwise": "op.2",
    "first_norm": "op.3",
    "second_depthwise": "op.5",
    "second_pointwise": "op.6",
    "second_norm": "op.7",
}
_INNER_MODULES = {
    "kernel_1": "conv_1",
    "kernel_2": "conv_2",
    "norm_1": "ln1",
    "qkv": "to_qkv",
    "proj": "to_out.0",
    "norm_2": "ln2",
    "mlp_1": "ff.net.0",
    "mlp_2": "ff.net.3",
    "squeeze": "fc1",
    "excite": "fc2",
}


_BOTTLENECK_CALL = re.compile(r"stage(?P<stage>\d)_block(?P<block>\d+)_(?P<part>\w+)_(conv|norm)")
_RESNET_MODULES = {"stem_conv": "conv1", "stem_norm": "bn1", "fc0": "fc"}


class NodeName(NamedTuple):
    """What a published file says about a node.

    Attributes:
        cell: index of the node's cell; the stem belongs to the first cell, the head to the last.
        name: name of the node's parameter without the cell's prefix, or of its operation if it has
            no parameter.
    """

    cell: int
    name: str


def torch_parameter_names(plan: Plan) -> tuple[str, ...]:
    """Name every parameter tensor as the PyTorch network does.

    Args:
        plan: the plan of an architecture of the DeepNets space, or of a ResNet.

    Returns:
        One name for each of `plan.tensors`, in that order.

    Raises:
        ValueError: if the plan describes another kind of network.
    """
    if isinstance(plan.architecture, ResNet):
        return tuple(_torchvision_name(tensor.path) for tensor in plan.tensors)
    _check_cells(plan)
    calls = frozenset(call.name for call in plan.calls)
    return tuple(_torch_name(tensor.path, calls) for tensor in plan.tensors)


def node_names(plan: Plan) -> tuple[NodeName, ...]:
    """Name every node of a plan's graph as published files do.

    Args:
        plan: the plan of an architecture of the DeepNets space.

    Returns:
        The cell and name of each of `plan.nodes`, in that order. As in the original, a node without
        parameters belongs to the cell of the nodes before it.

    Raises:
        ValueError: if the plan describes another kind of network.
    """
    last_cell = _check_cells(plan).num_cells - 1
    of_node: dict[int, str] = {}
    for tensor, name in zip(plan.tensors, torch_parameter_names(plan), strict=True):
        of_node.setdefault(tensor.node, name)  # a norm has two tensors; its scale comes first
    cell = 0
    names = []
    for index, node in enumerate(plan.nodes):
        name = of_node.get(index, node.primitive)
        if name.startswith("cells."):
            _, prefix, name = name.split(".", 2)
            cell = int(prefix)
        elif name.startswith("classifier."):
            cell = last_cell
        names.append(NodeName(cell, name))
    return tuple(names)


def _check_cells(plan: Plan) -> Architecture:
    if not isinstance(plan.architecture, Architecture):
        raise ValueError(
            f"plan is of a {type(plan.architecture).__name__}, expected an Architecture: only"
            " networks of cells have names in DeepNets-1M"
        )
    return plan.architecture


def _torchvision_name(path: tuple[str, ...]) -> str:
    call = path[0]
    suffix = "bias" if path[-1] == "bias" else "weight"
    if call in _RESNET_MODULES:
        return f"{_RESNET_MODULES[call]}.{suffix}"
    match = _BOTTLENECK_CALL.fullmatch(call)
    assert match is not None, path
    module, is_norm = match["part"], call.endswith("_norm")
    if module == "shortcut":
        module = f"downsample.{int(is_norm)}"
    elif is_norm:
        module = module.replace("conv", "bn")
    return f"layer{int(match['stage']) + 1}.{match['block']}.{module}.{suffix}"


def _torch_name(path: tuple[str, ...], calls: frozenset[str]) -> str:
    call, *inner = path
    if inner == ["position"]:
        return "pos_enc.weight"
    suffix = "bias" if inner[-1] == "bias" else "weight"
    match = _CELL_CALL.fullmatch(call)
    if match is None:
        if call.startswith("fc"):
            return f"classifier.{3 * int(call[2:])}.{suffix}"  # relu and dropout are in between
        module = _STEM_MODULES[call]
    else:
        base = f"cell{match['cell']}_{match['input']}"
        owner = match["input"]
        if owner.startswith("op"):
            owner = f"_ops.{owner[2:]}"
        module = f"cells.{match['cell']}.{owner}.{_inner_module(base, match['part'], inner, calls)}"
    # A norm's scale and bias are `weight` and `bias` of the same module.
    return f"{module}.{suffix}"


def _inner_module(base: str, part: str, inner: list[str], calls: frozenset[str]) -> str:
    if inner[0] in _INNER_MODULES:
        return _INNER_MODULES[inner[0]]
    if part != "norm":
        return _PART_MODULES[part]
    if f"{base}_reduce" in calls:
        return "bn"
    return "op.2" if f"{base}_conv" in calls else "op.3"
