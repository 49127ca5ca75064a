"""Write DeepNets-1M files, readable by `reader.DeepNets1M` and by the original.

In: architectures of a split. Out: `deepnets1m_<split>.hdf5` and `deepnets1m_<split>_meta.json`
(docs/method.md, 'Official files'). Unlike in files from the original's generator, nodes are listed
in the order of their edges. Adjacencies are compressed, which is transparent to HDF5 readers.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from ghn_jax.architectures import Architecture
from ghn_jax.configuration.validation import check_choice, shorten
from ghn_jax.deepnets1m.hdf5_schema import FILE_ERRORS
from ghn_jax.deepnets1m.parameter_names import NodeName, node_names
from ghn_jax.deepnets1m.reader import DeepNets1M, meta_path
from ghn_jax.extras import extra
from ghn_jax.graphs.schema import TracedNode
from ghn_jax.sampling import SPLITS, count_parameters
from ghn_jax.sampling.sampler import REFERENCE_CHANNELS, REFERENCE_CLASSES, REFERENCE_FC_SIZE
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower

with extra("train", "DeepNets-1M files"):
    import h5py

MAX_STORED_DISTANCE = 250
"""Longest distance written, the same as in the original; it leaves room in uint8 for 'no path'."""

DATASET_IMAGE_SIZES = {"cifar10": 32, "imagenet": 224}
"""Maps keys of `num_params` in meta files to the image sizes at which parameters are counted."""


_TITLE = "DeepNets-1M"


class Record(NamedTuple):
    """What a file says about one network, before names become ids.

    Attributes:
        entry: the network's entry in the meta file.
        adjacency: (N, N) uint8 [from, to], shortest-path distances; 1 is an edge, 0 no path.
        primitives: primitives of the N nodes, with 1x1 convolutions distinguished from others.
        names: cells and names of the N nodes.
    """

    entry: dict[str, Any]
    adjacency: np.ndarray
    primitives: tuple[str, ...]
    names: tuple[NodeName, ...]


def make_record(architecture: Architecture, split: str) -> Record:
    """Describe an architecture as files do.

    Args:
        architecture: an architecture drawn from the split.
        split: one of `ghn_jax.sampling.SPLITS`.

    Returns:
        The record. For training networks it has no width; for those of `wide`, the width they would
        have in `test`.
    """
    plan = lower(architecture, DATASET_IMAGE_SIZES["cifar10"], REFERENCE_CLASSES)
    reference = dataclasses.replace(
        architecture, channels=REFERENCE_CHANNELS, fc_size=REFERENCE_FC_SIZE
    )
    if split == "train":
        entry = reference.to_official()
        del entry["C"]
    else:
        entry = architecture.to_official()
        entry["C"] //= SPLITS[split].channel_factors[0]
    entry["num_nodes"] = len(plan.nodes)
    entry["num_params"] = {
        name: count_parameters(reference, image_size, REFERENCE_CLASSES)
        for name, image_size in DATASET_IMAGE_SIZES.items()
    }
    distances = build_graph(plan, MAX_STORED_DISTANCE).distance_matrix()
    return Record(
        entry=entry,
        adjacency=np.ascontiguousarray(distances.T),  # [receiver, sender] -> [from, to]
        primitives=tuple(_extended_primitive(node) for node in plan.nodes),
        names=node_names(plan),
    )


class DeepNets1MWriter:
    """Writes a split; used as a context manager.

    Everything is written under temporary names. Leaving the block renames both files, or removes
    them if an exception was raised, so that files under their final names are always complete.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str) -> None:
        """Choose the files.

        Args:
            directory: folder for the files; created if missing.
            split: one of `ghn_jax.sampling.SPLITS`.

        Raises:
            ValueError: if one of the files already exists.
        """
        check_choice("split", split, tuple(SPLITS))
        self.split = split
        self.path = Path(directory) / f"deepnets1m_{split}.hdf5"
        self.meta_path = meta_path(self.path)
        for path in (self.path, self.meta_path):
            if path.exists():
                raise ValueError(f"{path} exists, expected a new file: remove it to write it again")
        self.num_written = 0
        self._primitives: dict[str, int] = {}
        self._names: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(_partial(self.path), "w")
        self._file.attrs["title"] = _TITLE
        self._group = self._file.create_group(self.split)
        self._meta = _partial(self.meta_path).open("w", encoding="utf-8")
        self._meta.write(f'{{{json.dumps(self.split)}: {{"nets": [')
        return self

    def write(self, record: Record) -> None:
        """Append a network.

        Args:
            record: the record of a network of the split.
        """
        rows = [
            (
                self._primitives.setdefault(primitive, len(self._primitives)),
                name.cell,
                self._names.setdefault(name.name, len(self._names)),
            )
            for primitive, name in zip(record.primitives, record.names, strict=True)
        ]
        group = self._group.create_group(str(self.num_written))
        group.create_dataset("adj", data=record.adjacency, compression="gzip", compression_opts=1)
        group.create_dataset("nodes", data=np.array(rows, np.uint16))
        self._meta.write((", " if self.num_written else "") + json.dumps(record.entry))
        self.num_written += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        meta = {
            "primitives_ext": {str(index): name for name, index in self._primitives.items()},
            "unique_op_names": {str(index): name for name, index in self._names.items()},
        }
        self._meta.write(f'], "meta": {json.dumps(meta)}}}}}')
        self._meta.close()
        self._file.close()
        for path in (self.meta_path, self.path):
            if kind is None:
                _partial(path).replace(path)
            else:
                _partial(path).unlink()


def merge_evaluation_splits(directory: str | os.PathLike[str]) -> Path:
    """Copy the evaluation splits in a folder into one file, the only one the original reads.

    Args:
        directory: folder with some of `deepnets1m_{val,test,wide,deep,dense,bnfree}.hdf5`.

    Returns:
        The path of the new `deepnets1m_eval.hdf5`; its meta file is next to it.

    Raises:
        ValueError: if the folder has no evaluation split, one of the new files already exists, or
            a file to merge is damaged.
    """
    merged = Path(directory) / "deepnets1m_eval.hdf5"
    for path in (merged, meta_path(merged)):
        if path.exists():
            raise ValueError(f"{path} exists, expected a new file: remove it to merge again")
    paths = {
        split: path
        for split in SPLITS
        if split not in ("train", "search")
        and (path := merged.with_name(f"deepnets1m_{split}.hdf5")).is_file()
    }
    if not paths:
        raise ValueError(f"{directory} has no evaluation split, expected some to merge")
    meta = {}
    try:
        with h5py.File(_partial(merged), "w") as file:
            file.attrs["title"] = _TITLE
            for split, path in paths.items():
                DeepNets1M(directory, split)  # checks that the two files belong together
                try:
                    with h5py.File(path, "r") as source:
                        source.copy(split, file)
                except FILE_ERRORS as error:
                    raise ValueError(f"{path} cannot be copied: {shorten(error)}") from error
                try:
                    meta[split] = json.loads(meta_path(path).read_text(encoding="utf-8"))[split]
                except (ValueError, RecursionError) as error:
                    raise ValueError(
                        f"{meta_path(path)} cannot be read: {shorten(error)}"
                    ) from error
        _partial(meta_path(merged)).write_text(json.dumps(meta), encoding="utf-8")
        for path in (meta_path(merged), merged):
            _partial(path).replace(path)
    finally:
        for path in (meta_path(merged), merged):
            _partial(path).unlink(missing_ok=True)
    return merged


def _extended_primitive(node: TracedNode) -> str:
    """Return a node's primitive in files, which distinguish 1x1 convolutions and linear layers."""
    return "conv_1x1" if node.primitive == "conv" and node.shape[2:] == (1, 1) else node.primitive


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")
