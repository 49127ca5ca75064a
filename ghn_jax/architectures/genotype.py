"""Descriptions of networks: cells (`Genotype`), whole networks (`Architecture`) and ResNets.

In: the choices that define a network of the DeepNets-1M space (Knyazev et al., NeurIPS 2021,
section 3 and appendix A), as a dictionary or as keyword arguments. Out: frozen, hashable, validated
dataclasses. They say nothing about parameters or tensors; `ghn_jax.targets` derives those.

Cells follow DARTS (Liu et al., ICLR 2019), with more operations: step i of a cell adds the results
of operations 2i and 2i+1, each of which reads one earlier state. States 0 and 1 are the outputs of
the two previous cells, state 2+i is the sum of step i, and the cell's output concatenates some of
the states along channels.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import (
    as_tuple,
    check_choice,
    check_keys,
    check_positive_int,
    describe_value,
    suggest,
)

OPERATIONS: tuple[str, ...] = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_7x1_1x7",
    "conv_3x3",
    "conv_5x5",
    "conv_7x7",
    "msa",
    "cse",
)
"""The operations that an edge of a cell may carry."""

UNLEARNED_OPERATIONS: tuple[str, ...] = OPERATIONS[:4]
"""Operations without weights (though a `skip_connect` of stride 2 has two 1x1 convolutions)."""

ATTENTION_HEADS = 8
"""Number of heads in every `msa`; the number of channels must be a multiple of it."""

NodeOp = tuple[str, int]
"""An operation and the index of the state it reads."""


@dataclasses.dataclass(frozen=True)
class Genotype:
    """The two cells a network repeats.

    Attributes:
        normal: the 2 * num_steps pairs (operation, input state) of the normal cell.
        normal_concat: the states that form the normal cell's output, in ascending order, each in
            2..num_steps+1.
        reduce: the 2 * num_steps pairs of the reduction cell.
        reduce_concat: the states that form the reduction cell's output.
    """

    normal: tuple[NodeOp, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[NodeOp, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_cell("genotype.normal", self.normal)
        _check_cell("genotype.reduce", self.reduce)
        if len(self.normal) != len(self.reduce):
            raise ValueError(
                f"genotype.reduce has {len(self.reduce)} operations, expected {len(self.normal)},"
                " as many as genotype.normal"
            )
        _check_concat("genotype.normal_concat", self.normal_concat, self.num_steps)
        _check_concat("genotype.reduce_concat", self.reduce_concat, self.num_steps)

    @property
    def num_steps(self) -> int:
        """Number of sums in each cell."""
        return len(self.normal) // 2

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of the normal cell, followed by those of the reduction cell."""
        return tuple(operation for operation, _ in self.normal + self.reduce)

    def to_dict(self) -> dict[str, Any]:
        """Return the genotype as official files write it, with lists only, ready for JSON."""
        return {
            "normal": [list(pair) for pair in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(pair) for pair in self.reduce],
            "reduce_concat": list(self.reduce_concat),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Genotype:
        """Build a genotype from a mapping with the keys of the official files.

        Args:
            values: a mapping with the keys normal and reduce (sequences of pairs), normal_concat
                and reduce_concat (sequences of int, or a range).

        Returns:
            The validated genotype.

        Raises:
            ValueError: if a key is missing or unknown, or a cell is not valid.
        """
        check_keys("genotype", values, tuple(field.name for field in dataclasses.fields(cls)))
        return cls(
            normal=_as_pairs("genotype.normal", values["normal"]),
            normal_concat=as_tuple("genotype.normal_concat", values["normal_concat"]),
            reduce=_as_pairs("genotype.reduce", values["reduce"]),
            reduce_concat=as_tuple("genotype.reduce_concat", values["reduce_concat"]),
        )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network of the DeepNets-1M space: stem, cells, pooling or flattening, linear layers.

    Attributes:
        genotype: the cells that the network repeats.
        num_cells: number of cells; cells num_cells // 3 and 2 * num_cells // 3 reduce (not cell 0).
        channels: width C of the first cells.
        stem_type: 0 for one convolution, 1 for three with the second cell input at half the
            resolution. Networks with attention have a patch embedding instead and ignore it.
        stem_pool: whether a 3x3 max pool of stride 2 follows a stem of type 0.
        stem_kernel: kernel size of the stem's first convolution, an odd number.
        norm: "batch" for batch norm, None for no norm (attention keeps its layer norms).
        preprocess: whether a 1x1 convolution brings each cell input to the cell's width. Without
            it, only one step and no widening are possible, since the widths would not match.
        channel_multiplier: factor on the width at each reduction, 1 or 2.
        global_pool: whether pixels are averaged, rather than flattened, before the first linear
            layer.
        num_fc_layers: number of linear layers, the last of which is the classifier.
        fc_size: width of the linear layers before the classifier.
    """

    genotype: Genotype
    num_cells: int
    channels: int
    stem_type: int = 0
    stem_pool: bool = False
    stem_kernel: int = 3
    norm: str | None = "batch"
    preprocess: bool = True
    channel_multiplier: int = 2
    global_pool: bool = True
    num_fc_layers: int = 1
    fc_size: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.genotype, Genotype):
            raise ValueError(f"genotype is {describe_value(self.genotype)}, expected a Genotype")
        for name, most in _MOST.items():
            check_positive_int(name, getattr(self, name), most)
        for name in ("stem_pool", "preprocess", "global_pool"):
            check_choice(name, getattr(self, name), (False, True))
        check_choice("stem_type", self.stem_type, (0, 1))
        check_choice("norm", self.norm, ("batch", None))
        check_choice("channel_multiplier", self.channel_multiplier, (1, 2))
        if self.stem_kernel % 2 == 0:
            raise ValueError(f"stem_kernel is {self.stem_kernel}, expected an odd number")
        if self.has_attention and self.channels % ATTENTION_HEADS != 0:
            raise ValueError(
                f"channels is {self.channels}, expected a multiple of {ATTENTION_HEADS}, the number"
                " of attention heads, since the genotype contains 'msa'"
            )
        if self.channels % 2 != 0:
            raise ValueError(
                f"channels is {self.channels}, expected an even number: stems and strided skips"
                " halve it"
            )
        if self.stem_pool and self.stem_type == 1:
            raise ValueError(
                "stem_pool is True with stem_type 1, expected False: only a type-0 stem pools"
            )
        if not self.preprocess and (self.genotype.num_steps > 1 or self.channel_multiplier > 1):
            raise ValueError(
                f"preprocess is False with {self.genotype.num_steps} steps and channel_multiplier"
                f" {self.channel_multiplier}, expected True: without the 1x1 convolutions before"
                " each cell the widths only match with one step and channel_multiplier 1"
            )

    @property
    def has_attention(self) -> bool:
        """Whether any operation is `msa`; such networks are isotropic, on a patch embedding."""
        return "msa" in self.genotype.operations

    def is_reduction(self, cell_index: int) -> bool:
        """Return whether cell `cell_index` (0-based) is a reduction cell."""
        return cell_index > 0 and cell_index in (self.num_cells // 3, 2 * self.num_cells // 3)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary with this class's field names."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "genotype": self.genotype.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Build an architecture from `to_dict`'s output; fields with a default may be missing.

        Args:
            values: a mapping from field names to values; `genotype` may be a Genotype or its
                dictionary.

        Returns:
            The validated architecture.

        Raises:
            ValueError: if a field is missing, unknown or not valid.
        """
        fields = dataclasses.fields(cls)
        required = tuple(field.name for field in fields if field.default is dataclasses.MISSING)
        optional = tuple(field.name for field in fields if field.default is not dataclasses.MISSING)
        check_keys("architecture", values, required, optional)
        genotype = values["genotype"]
        if not isinstance(genotype, Genotype):
            genotype = Genotype.from_dict(genotype)
        return cls(**{**values, "genotype": genotype})

    @classmethod
    def from_official(
        cls, values: Mapping[str, Any], channels: int | None = None, fc_size: int | None = None
    ) -> Architecture:
        """Build an architecture from an entry `nets[i]` of an official DeepNets-1M meta file.

        Args:
            values: the constructor arguments of the original network. Those of a training split
                lack the width 'C'; keys that describe the network instead of defining it
                (num_nodes, num_params) are ignored.
            channels: width to use instead of 'C'; required if there is no 'C'.
            fc_size: width of the hidden linear layers to use instead of 'fc_dim'.

        Returns:
            The validated architecture.

        Raises:
            ValueError: if an argument is missing, unknown or not valid.
        """
        check_keys("nets entry", values, _OFFICIAL_REQUIRED, _OFFICIAL_OPTIONAL)
        if channels is None and "C" not in values:
            raise ValueError(
                "channels is None and the nets entry has no 'C', expected the width to be given:"
                " entries of a training split have none"
            )
        check_choice("nets entry 'norm'", values["norm"], tuple(_NORM_FROM_OFFICIAL))
        return cls(
            genotype=Genotype.from_dict(values["genotype"]),
            num_cells=values["n_cells"],
            channels=values["C"] if channels is None else channels,
            stem_type=values["stem_type"],
            stem_pool=values["stem_pool"],
            stem_kernel=values["ks"],
            norm=_NORM_FROM_OFFICIAL[values["norm"]],
            preprocess=values["preproc"],
            channel_multiplier=values["C_mult"],
            global_pool=values["glob_avg"],
            num_fc_layers=values["fc_layers"],
            fc_size=values["fc_dim"] if fc_size is None else fc_size,
        )

    def to_official(self) -> dict[str, Any]:
        """Return this architecture's entry for an official meta file, including the width 'C'."""
        return {
            "stem_type": self.stem_type,
            "stem_pool": self.stem_pool,
            "norm": _NORM_TO_OFFICIAL[self.norm],
            "preproc": self.preprocess,
            "fc_layers": self.num_fc_layers,
            "glob_avg": self.global_pool,
            "genotype": self.genotype.to_dict(),
            "n_cells": self.num_cells,
            "ks": self.stem_kernel,
            "C_mult": self.channel_multiplier,
            "fc_dim": self.fc_size,
            "C": self.channels,
        }


@dataclasses.dataclass(frozen=True)
class ResNet:
    """A residual network of bottleneck blocks (He et al., CVPR 2016), as torchvision builds it.

    For small images it has a 3x3 stem of stride 1 without pooling, as in the published evaluations.

    Attributes:
        stage_sizes: number of bottleneck blocks in each of the four stages; the default is
            ResNet-50.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)

    def __post_init__(self) -> None:
        if not isinstance(self.stage_sizes, tuple) or len(self.stage_sizes) != 4:
            raise ValueError(
                f"stage_sizes is {describe_value(self.stage_sizes)}, expected a tuple of four"
                " positive integers"
            )
        for index, size in enumerate(self.stage_sizes):
            check_positive_int(f"stage_sizes[{index}]", size, limits.STAGE_SIZE)

    @property
    def has_attention(self) -> bool:
        """Whether the network contains attention, which it never does."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"stage_sizes": list(self.stage_sizes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResNet:
        """Build a ResNet from `to_dict`'s output.

        Args:
            values: a mapping with the key `stage_sizes`, a sequence of four positive integers.

        Returns:
            The validated description.

        Raises:
            ValueError: if a key is unknown or a size is not valid.
        """
        check_keys("resnet", values, (), ("stage_sizes",))
        sizes = values.get("stage_sizes", cls.stage_sizes)
        return cls(stage_sizes=as_tuple("stage_sizes", sizes))


_OFFICIAL_REQUIRED = (
    "genotype",
    "n_cells",
    "stem_type",
    "stem_pool",
    "ks",
    "norm",
    "preproc",
    "C_mult",
    "glob_avg",
    "fc_layers",
    "fc_dim",
)
_OFFICIAL_OPTIONAL = ("C", "num_nodes", "num_params")
_NORM_FROM_OFFICIAL: dict[str | None, str | None] = {"bnorm": "batch", None: None}
_NORM_TO_OFFICIAL: dict[str | None, str | None] = {"batch": "bnorm", None: None}


_MOST = {
    "num_cells": limits.NUM_CELLS,
    "channels": limits.WIDTH,
    "stem_kernel": limits.KERNEL_SIZE,
    "num_fc_layers": limits.NUM_FC_LAYERS,
    "fc_size": limits.WIDTH,
}


def _check_cell(name: str, pairs: tuple[NodeOp, ...]) -> None:
    if not isinstance(pairs, tuple) or not pairs or len(pairs) % 2 != 0:
        raise ValueError(
            f"{name} is {describe_value(pairs)}, expected a non-empty tuple of an even number of"
            " (operation, input) pairs"
        )
    if len(pairs) > 2 * limits.NUM_STEPS:
        raise ValueError(
            f"{name} has {len(pairs)} operations, expected at most {2 * limits.NUM_STEPS}"
        )
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(
                f"{name}[{index}] is {describe_value(pair)}, expected a pair (operation, input)"
            )
        operation, state = pair
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise ValueError(
                f"{name}[{index}] has the unknown operation {describe_value(operation)}"
                f"{suggest(operation, OPERATIONS)}, expected one of {', '.join(OPERATIONS)}"
            )
        last_state = 1 + index // 2
        if type(state) is not int or not 0 <= state <= last_state:
            raise ValueError(
                f"{name}[{index}] reads input {describe_value(state)}, expected 0..{last_state}:"
                f" step {index // 2} may read the two cell inputs and earlier steps"
            )


def _check_concat(name: str, states: tuple[int, ...], num_steps: int) -> None:
    last_state = num_steps + 1
    if not isinstance(states, tuple) or not states:
        raise ValueError(
            f"{name} is {describe_value(states)}, expected a non-empty tuple of states in"
            f" 2..{last_state}"
        )
    for state in states:
        if type(state) is not int or not 2 <= state <= last_state:
            raise ValueError(
                f"{name} contains {describe_value(state)}, expected states in 2..{last_state}"
                f" ({num_steps} steps)"
            )
    if any(later <= earlier for earlier, later in itertools.pairwise(states)):
        raise ValueError(
            f"{name} is {describe_value(states)}, expected distinct states in ascending order"
        )


def _as_pairs(name: str, values: Any) -> tuple[Any, ...]:
    return tuple(
        as_tuple(f"{name}[{index}]", pair) for index, pair in enumerate(as_tuple(name, values))
    )
