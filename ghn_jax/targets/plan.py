"""Lower an architecture to a plan: its blocks in topological order, with shapes, tensors and nodes.

The input is an architecture of the space or a ResNet, the image size and the number of classes. The
output is a `Plan`, which everything else shares: `network.TargetNetwork` composes the blocks, the
graph is built from the nodes, and the training engine calls the blocks. Whatever a `none` cuts off
is not in the plan, and hence in neither the graph nor the parameters (docs/method.md, 'Graph').
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from ghn_jax.architectures import Architecture, ResNet
from ghn_jax.graphs.schema import ParameterTensor, TracedNode
from ghn_jax.targets import blocks
from ghn_jax.targets.symbolic import Activation, Recorder

SMALL_IMAGE_LIMIT = 64  # pixels; networks for larger images get the large-image stems
NUM_IMAGE_CHANNELS = 3  # what the published networks read

_Value = int | None  # the id of a draft's output, None if a `none` left it without one


class DisconnectedError(ValueError):
    """The output of an architecture does not depend on its input."""


@dataclasses.dataclass(frozen=True)
class BlockCall:
    """One use of a block.

    Attributes:
        name: Key of the block's parameters in the target's tree.
        block: The block, which is static configuration only; equal blocks are the same object.
        inputs: Ids of the input activations: 0 is the image, i + 1 the output of call i.
        tensors: The block's parameter tensors, in the order in which the engine passes them.
        output_shape: Shape of the output without the batch axis.
    """

    name: str
    block: blocks.Block
    inputs: tuple[int, ...]
    tensors: tuple[ParameterTensor, ...]
    output_shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A lowered architecture.

    Attributes:
        architecture: The architecture that was lowered.
        image_size: Height and width of the images, in pixels.
        num_classes: Number of logits.
        calls: Block calls in topological order; the last one returns the logits.
        nodes: Nodes of the graph in topological order, starting with the input.
        num_channels: Number of image channels.
    """

    architecture: Architecture | ResNet
    image_size: int
    num_classes: int
    calls: tuple[BlockCall, ...]
    nodes: tuple[TracedNode, ...]
    num_channels: int = NUM_IMAGE_CHANNELS

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (S, S, C)."""
        return (self.image_size, self.image_size, self.num_channels)

    @functools.cached_property
    def tensors(self) -> tuple[ParameterTensor, ...]:
        """All parameter tensors, ordered by call."""
        return tuple(tensor for call in self.calls for tensor in call.tensors)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, not counting what a `none` cuts off."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def uses_dropout(self) -> bool:
        """Whether the head has a dropout layer."""
        return any(isinstance(c.block, blocks.Linear) and c.block.activate for c in self.calls)


@functools.cache
def _block(block: Any, /, **fields: Any) -> blocks.Block:
    # One object per configuration: making a million plans stays cheap, and an object's identity is
    # its signature.
    return block(**fields)


class _Draft:
    """The block calls in the order in which they are added, before pruning."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, blocks.Block, tuple[int, ...]]] = []

    def add(
        self, name: str, block: Callable[..., blocks.Block], /, *inputs: _Value, **fields: Any
    ) -> _Value:
        """Add a call and return its output's id, or None if an input is missing."""
        present = tuple(value for value in inputs if value is not None)
        if len(present) < len(inputs):
            return None
        self.calls.append((name, _block(block, **fields), present))
        return len(self.calls)


def lower(
    architecture: Architecture | ResNet,
    image_size: int,
    num_classes: int,
    num_channels: int = NUM_IMAGE_CHANNELS,
) -> Plan:
    """Lower an architecture to a plan of blocks.

    This takes about a millisecond and allocates no parameters.

    Args:
        architecture: An architecture of the DeepNets space, or a ResNet.
        image_size: Height and width of the images, in pixels. Up to 64, the network is the
            small-image variant.
        num_classes: Number of classes.
        num_channels: Number of image channels.

    Returns:
        The plan.

    Raises:
        DisconnectedError: If the logits do not depend on the image.
        ValueError: If `image_size`, `num_classes` or `num_channels` is not a positive integer.
    """
    sizes = {"image_size": image_size, "num_classes": num_classes, "num_channels": num_channels}
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a positive integer")
    draft = _Draft()
    if isinstance(architecture, ResNet):
        output = _draft_resnet(draft, architecture, image_size, num_classes)
    else:
        output = _draft_cells(draft, architecture, image_size, num_classes)
    if output is None:
        raise DisconnectedError(
            "the output of the architecture does not depend on its input: its 'none' operations cut"
            f" every path in {architecture}"
        )
    return _finish(draft, architecture, image_size, num_classes, num_channels)


def _finish(
    draft: _Draft,
    architecture: Architecture | ResNet,
    image_size: int,
    num_classes: int,
    num_channels: int,
) -> Plan:
    """Keep the calls that reach the output, and trace them."""
    needed = {len(draft.calls)}
    for index in range(len(draft.calls), 0, -1):
        if index in needed:
            needed.update(draft.calls[index - 1][2])
    recorder = Recorder()
    image = Activation((image_size, image_size, num_channels), recorder.node("input", ()))
    values = {0: image}
    new_id = {0: 0}
    calls = []
    for old_id, (name, block, inputs) in enumerate(draft.calls, start=1):
        if old_id not in needed:
            continue
        recorder.enter(name)
        first_tensor = len(recorder.tensors)
        values[old_id] = block.record(recorder, *(values[i] for i in inputs))
        tensors = tuple(recorder.tensors[first_tensor:])
        new_inputs = tuple(new_id[i] for i in inputs)
        calls.append(BlockCall(name, block, new_inputs, tensors, values[old_id].shape))
        new_id[old_id] = len(calls)
    nodes = tuple(recorder.nodes)
    return Plan(architecture, image_size, num_classes, tuple(calls), nodes, num_channels)


def _draft_cells(
    draft: _Draft, architecture: Architecture, image_size: int, num_classes: int
) -> _Value:
    large = image_size > SMALL_IMAGE_LIMIT
    previous, current = _draft_stem(draft, architecture, large)
    channels = architecture.channels
    after_reduction = architecture.stem_type == 1
    for cell in range(architecture.num_cells):
        reduces = architecture.is_reduction(cell)
        channels *= architecture.channel_multiplier if reduces else 1
        states = _draft_cell_inputs(
            draft, architecture, cell, channels, after_reduction, (previous, current)
        )
        output = _draft_cell(draft, architecture, cell, channels, states)
        previous, current = current, output
        after_reduction = reduces
    kind = blocks.GlobalPool if architecture.global_pool else blocks.Flatten
    value = draft.add("pool", kind, current)
    for layer in range(architecture.num_fc_layers):
        last = layer == architecture.num_fc_layers - 1
        features = num_classes if last else architecture.fc_size
        value = draft.add(
            f"fc{layer}",
            blocks.Linear,
            value,
            features=features,
            activate=layer > 0,
            classifier=last,
        )
    return value


def _draft_stem(draft: _Draft, architecture: Architecture, large: bool) -> tuple[_Value, _Value]:
    channels, norm = architecture.channels, architecture.norm
    if architecture.has_attention:
        patch = 16 if large else 3
        stem = draft.add("stem", blocks.PatchStem, 0, features=channels, patch=patch)
        return stem, stem
    kernel = architecture.stem_kernel
    if architecture.stem_type == 0:
        wide = architecture.preprocess and not large
        features, stride = 3 * channels if wide else channels, 4 if large else 1
        stem = _add_conv(draft, "stem", 0, features, kernel, stride, norm=norm, activate=False)
        if architecture.stem_pool:
            stem = draft.add("stem_pool", blocks.Pool, stem, kind="max", stride=2)
        return stem, stem
    stride = 2 if large else 1
    add = functools.partial(_add_conv, draft, norm=norm)
    first = add("stem0_first", 0, channels // 2, kernel, stride, activate=False)
    stem0 = add("stem0_second", first, channels, 3, stride)
    return stem0, add("stem1", stem0, channels, 3, 2)


def _add_conv(
    draft: _Draft,
    name: str,
    value: _Value,
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    norm: str | None,
    activate: bool = True,
) -> _Value:
    """Add an optional relu, a convolution and a norm."""
    fields = {"features": features, "kernel": (kernel, kernel), "stride": (stride, stride)}
    value = draft.add(f"{name}_conv", blocks.Conv, value, activate=activate, **fields)
    return _add_norm(draft, name, value, norm)


def _add_norm(draft: _Draft, name: str, value: _Value, norm: str | None) -> _Value:
    return value if norm is None else draft.add(f"{name}_norm", blocks.BatchNorm, value)


def _add_separable(
    draft: _Draft,
    name: str,
    value: _Value,
    features: int,
    kernel: int,
    stride: int,
    dilation: int,
    norm: str | None,
) -> _Value:
    """Add relu, depthwise convolution, 1x1 convolution and norm; a sep_conv has this twice."""
    fields: dict[str, Any] = {"kernel": kernel, "stride": stride, "dilation": dilation}
    value = draft.add(f"{name}_depthwise", blocks.DepthwiseConv, value, **fields)
    fields = {"features": features, "kernel": (1, 1), "activate": False}
    value = draft.add(f"{name}_pointwise", blocks.Conv, value, **fields)
    return _add_norm(draft, name, value, norm)


def _add_split_kernel(
    draft: _Draft,
    name: str,
    value: _Value,
    features: int,
    kernel: int,
    stride: int,
    norm: str | None,
) -> _Value:
    """Add relu, (1, k) and (k, 1) convolutions, each strided along its long axis, and norm."""
    row: dict[str, Any] = {"features": features, "kernel": (1, kernel), "stride": (1, stride)}
    value = draft.add(f"{name}_row", blocks.Conv, value, **row)
    column: dict[str, Any] = {"features": features, "kernel": (kernel, 1), "stride": (stride, 1)}
    value = draft.add(f"{name}_column", blocks.Conv, value, activate=False, **column)
    return _add_norm(draft, name, value, norm)


def _add_factorized_reduce(
    draft: _Draft, name: str, value: _Value, features: int, norm: str | None
) -> _Value:
    value = draft.add(f"{name}_reduce", blocks.FactorizedReduce, value, features=features)
    return _add_norm(draft, name, value, norm)


def _draft_cell_inputs(
    draft: _Draft,
    architecture: Architecture,
    cell: int,
    channels: int,
    after_reduction: bool,
    inputs: tuple[_Value, _Value],
) -> list[_Value]:
    """Bring the previous two outputs to the cell's width, and the first to the second's size."""
    norm = architecture.norm
    halves = after_reduction and not architecture.has_attention
    names = (f"cell{cell}_preprocess0", f"cell{cell}_preprocess1")
    if not architecture.preprocess:
        first = draft.add(names[0], blocks.Subsample, inputs[0]) if halves else inputs[0]
        return [first, inputs[1]]
    if halves:
        first = _add_factorized_reduce(draft, names[0], inputs[0], channels, norm)
    else:
        first = _add_conv(draft, names[0], inputs[0], channels, 1, norm=norm)
    return [first, _add_conv(draft, names[1], inputs[1], channels, 1, norm=norm)]


def _draft_cell(
    draft: _Draft, architecture: Architecture, cell: int, channels: int, states: list[_Value]
) -> _Value:
    genotype = architecture.genotype
    reduces = architecture.is_reduction(cell)
    pairs = genotype.reduce if reduces else genotype.normal
    concat = genotype.reduce_concat if reduces else genotype.normal_concat
    for step in range(genotype.num_steps):
        results = []
        for index in (2 * step, 2 * step + 1):
            operation, source = pairs[index]
            stride = 2 if reduces and source < 2 and not architecture.has_attention else 1
            name = f"cell{cell}_op{index}"
            value = states[source]
            results.append(
                _draft_operation(draft, name, operation, value, channels, stride, architecture.norm)
            )
        given = [value for value in results if value is not None]
        if len(given) == 2:
            states.append(draft.add(f"cell{cell}_sum{step}", blocks.Sum, *given))
        else:
            states.append(given[0] if given else None)
    members = [states[index] for index in concat]
    given = [value for value in members if value is not None]
    if not given:
        return None
    if len(members) == 1:
        return given[0]
    present = tuple(value is not None for value in members)
    return draft.add(f"cell{cell}_concat", blocks.Concat, *given, present=present)


def _draft_operation(
    draft: _Draft,
    name: str,
    operation: str,
    value: _Value,
    channels: int,
    stride: int,
    norm: str | None,
) -> _Value:
    if operation == "none" or value is None:
        return None
    if operation == "skip_connect":
        if stride == 1:
            return value
        return _add_factorized_reduce(draft, name, value, channels, norm)
    if operation in ("max_pool_3x3", "avg_pool_3x3"):
        kind = "max" if operation.startswith("max") else "avg"
        return draft.add(name, blocks.Pool, value, kind=kind, stride=stride)
    if operation == "msa":
        return draft.add(name, blocks.Attention, value, stride=stride)
    if operation == "cse":
        return draft.add(name, blocks.SqueezeExcite, value, stride=stride)
    if operation == "conv_7x1_1x7":
        return _add_split_kernel(draft, name, value, channels, 7, stride, norm)
    kind, size = operation.rsplit("_", 1)
    kernel = int(size[0])
    if kind == "conv":
        return _add_conv(draft, name, value, channels, kernel, stride, norm=norm)
    if kind == "dil_conv":
        return _add_separable(draft, name, value, channels, kernel, stride, 2, norm)
    value = _add_separable(draft, f"{name}_first", value, channels, kernel, stride, 1, norm)
    return _add_separable(draft, f"{name}_second", value, channels, kernel, 1, 1, norm)


def _draft_resnet(draft: _Draft, resnet: ResNet, image_size: int, num_classes: int) -> _Value:
    """Draft a bottleneck ResNet as torchvision has it.

    The stride is in the 3x3 convolution, and a relu follows every sum.
    """
    add = functools.partial(_add_conv, draft, norm="batch")
    large = image_size > SMALL_IMAGE_LIMIT
    value = add("stem", 0, 64, 7 if large else 3, 2 if large else 1, activate=False)
    value = draft.add("stem_relu", blocks.Relu, value)
    if large:
        value = draft.add("stem_pool", blocks.Pool, value, kind="max", stride=2)
    width = 64
    for stage, num_blocks in enumerate(resnet.stage_sizes):
        for index in range(num_blocks):
            name = f"stage{stage}_block{index}"
            stride = 2 if stage > 0 and index == 0 else 1
            branch = add(f"{name}_conv1", value, width, 1, activate=False)
            branch = add(f"{name}_conv2", branch, width, 3, stride)
            branch = add(f"{name}_conv3", branch, 4 * width, 1)
            if index == 0:
                value = add(f"{name}_shortcut", value, 4 * width, 1, stride, activate=False)
            value = draft.add(f"{name}_sum", blocks.Sum, branch, value)
            value = draft.add(f"{name}_relu", blocks.Relu, value)
        width *= 2
    value = draft.add("pool", blocks.GlobalPool, value)
    return draft.add(
        "fc0", blocks.Linear, value, features=num_classes, activate=False, classifier=True
    )
