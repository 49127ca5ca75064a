"""Read DeepNets-1M files: architectures with their graphs (docs/method.md, 'Official files').

In: `deepnets1m_<split>.hdf5` with `<split>/<i>/adj` and `<split>/<i>/nodes`, and next to it
`deepnets1m_<split>_meta.json`; the published evaluation splits share `deepnets1m_eval.hdf5`. Out:
architectures, and graphs for a GHN. A training split has a million graphs and entries, which are
read only on request.

The original's generator groups the rows of `nodes` by cell, while those of `adj` follow a
topological order in which cells interleave, so that a row may describe a different node from the
one its edges belong to. The original reads them side by side, and so do we: otherwise published
GHNs would see different graphs from those they were trained on. `node_order` finds the permutation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ghn_jax.architectures import Architecture
from ghn_jax.configuration.validation import check_choice, check_keys, describe_value, shorten
from ghn_jax.deepnets1m.hdf5_schema import (
    FILE_ERRORS,
    check_distances,
    check_nodes,
    open_group,
    open_integers,
)
from ghn_jax.deepnets1m.meta import IMAGE_SETS, MetaFile, check_entry
from ghn_jax.deepnets1m.parameter_names import node_names
from ghn_jax.extras import extra
from ghn_jax.graphs.arch_graph import MAX_VIRTUAL_DISTANCE, ArchGraph
from ghn_jax.graphs.primitives import PRIMITIVE_INDEX
from ghn_jax.sampling import SPLITS, SpaceConfig
from ghn_jax.sampling.sampler import REFERENCE_CHANNELS, draw_sizes
from ghn_jax.targets.plan import SMALL_IMAGE_LIMIT, lower

with extra("train", "DeepNets-1M files"):
    import h5py


class StoredArchitecture(NamedTuple):
    """What a file holds about one network.

    Attributes:
        architecture: the network's description.
        adjacency: (N, N) uint8 [from, to], shortest-path distances; 1 is an edge, 0 no path.
        nodes: (N, 3) uint16, the file's ids of each node's primitive, cell and name.
        primitives: the primitive of each node, one of `ghn_jax.graphs.PRIMITIVES`.
        names: the name of each node's parameter without the cell's prefix, or of its operation if
            it has no parameter.
    """

    architecture: Architecture
    adjacency: np.ndarray
    nodes: np.ndarray
    primitives: tuple[str, ...]
    names: tuple[str, ...]


class DeepNets1M:
    """A split of published or generated architectures, read lazily.

    `len(nets)` is the number of architectures and `nets[i]` a `StoredArchitecture`. An instance can
    be sent to other processes, each of which opens the file itself.
    """

    def __init__(
        self, directory: str | os.PathLike[str], split: str, image_size: int = 32, seed: int = 0
    ) -> None:
        """Open a split.

        Args:
            directory: folder with `deepnets1m_<split>.hdf5` or `deepnets1m_eval.hdf5`, and its meta
                file.
            split: one of `ghn_jax.sampling.SPLITS`.
            image_size: height and width of the images, in pixels. It decides the factor on the
                widths of `wide`, and which parameter counts bound the widths of training
                architectures.
            seed: seed for the widths of training architectures, which have none in the file.

        Raises:
            ValueError: if the file does not exist, lacks the split, is truncated, or does not
                belong to the meta file.
        """
        check_choice("split", split, tuple(SPLITS))
        self.split = split
        self.image_size = image_size
        self.seed = seed
        self.path = _find_file(Path(directory), split)
        self._meta = MetaFile(meta_path(self.path), split)
        tables = self._meta.tables
        self._primitives = {
            key: _current_primitive(name, self._meta.path)
            for key, name in tables["primitives_ext"].items()
        }
        self._names = {key: _current_name(name) for key, name in tables["unique_op_names"].items()}
        self._file: h5py.File | None = None
        self._file_owner = -1
        self._check_number()

    def __len__(self) -> int:
        return len(self._meta)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __getitem__(self, index: int) -> StoredArchitecture:
        if not 0 <= index < len(self):
            # IndexError, which also ends iteration.
            raise IndexError(f"index is {index}, expected 0..{len(self) - 1} in {self.path}")
        adjacency, nodes = self._read(index)
        return StoredArchitecture(
            architecture=self.architecture(index),
            adjacency=adjacency,
            nodes=nodes,
            primitives=tuple(self._primitives[identifier] for identifier in nodes[:, 0].tolist()),
            names=tuple(self._names[identifier] for identifier in nodes[:, 2].tolist()),
        )

    def entry(self, index: int) -> dict[str, Any]:
        """Return the meta file's entry of a network, unchanged.

        Args:
            index: index of the network.

        Returns:
            The original's constructor arguments, `num_nodes` and `num_params`.

        Raises:
            ValueError: if a value is missing, unknown or not as the format has it; it names the
                file and the entry.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, expected 0..{len(self) - 1} in {self.path}")
        entry = self._meta.entry(index)
        with self._meta.naming_entry(index):
            check_entry(entry, has_width=self.split != "train")
        return entry

    def architecture(self, index: int, draw: int = 0) -> Architecture:
        """Return a network's description; a training architecture is given a width.

        Args:
            index: index of the network.
            draw: which of its possible widths a training architecture gets. A new number at each
                visit gives it a new width each time, as in the original. Ignored if the file has a
                width.

        Returns:
            The architecture. Widths of `wide` are multiplied by 4 (2 for large images).
        """
        entry = self.entry(index)
        rules = SPLITS[self.split]
        large = self.image_size > SMALL_IMAGE_LIMIT
        if "C" in entry and self.split != "train":
            factor = rules.channel_factors[large]
            with self._meta.naming_entry(index):
                return Architecture.from_official(entry, channels=factor * entry["C"])
        space = SpaceConfig(split=self.split, image_size=self.image_size)
        sequence = np.random.SeedSequence(self.seed, spawn_key=(rules.stream, index, draw))
        images = IMAGE_SETS[large]
        with self._meta.naming_entry(index):
            check_keys("num_params", cast(Any, entry.get("num_params")), (images,), IMAGE_SETS)
        num_parameters = entry["num_params"][images]
        reference = Architecture.from_official(entry, channels=REFERENCE_CHANNELS)
        generator = np.random.Generator(np.random.Philox(sequence))
        channels, fc_size = draw_sizes(space, reference, num_parameters, generator)
        return Architecture.from_official(entry, channels=channels, fc_size=fc_size)

    def graph(
        self,
        index: int,
        num_classes: int,
        max_distance: int = MAX_VIRTUAL_DISTANCE,
        architecture: Architecture | None = None,
    ) -> ArchGraph:
        """Return a network's graph as the file has it, with the shapes of its parameters.

        Args:
            index: index of the network.
            num_classes: width of the network's output.
            max_distance: longest distance that an edge spans.
            architecture: the network at another width; None means that of `self[index]`.

        Returns:
            The graph, with the file's primitives, edges and order of nodes.

        Raises:
            ValueError: if a parameter tensor of the network has no node in the file.
        """
        stored = self[index]
        plan = lower(architecture or stored.architecture, self.image_size, num_classes)
        cells = stored.nodes[:, 1].tolist()
        position = {key: row for row, key in enumerate(zip(cells, stored.names, strict=True))}
        shapes = np.zeros((len(stored.names), 4), np.int32)
        for row, primitive in enumerate(stored.primitives):
            if primitive in ("max_pool", "avg_pool"):
                shapes[row] = (1, 1, 3, 3)
        keys = node_names(plan)
        tensors = []
        for tensor in plan.tensors:
            key = tuple(keys[tensor.node])
            if key not in position:
                raise ValueError(
                    f"{self.path} has no node {key[1]!r} in cell {key[0]} of {self.split}/{index},"
                    f" expected one for the parameter {'/'.join(tensor.path)}"
                )
            row = position[key]
            shapes[row] = plan.nodes[tensor.node].shape
            tensors.append(dataclasses.replace(tensor, node=row))
        distances = np.where(stored.adjacency > max_distance, 0, stored.adjacency).T
        receivers, senders = np.nonzero(distances)
        return ArchGraph.from_arrays(
            primitive=np.array([PRIMITIVE_INDEX[name] for name in stored.primitives], np.int32),
            shape=shapes,
            senders=senders.astype(np.int32),
            receivers=receivers.astype(np.int32),
            distance=distances[receivers, senders].astype(np.int32),
            tensors=tensors,
        )

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the arrays of a network and check them against the meta file."""
        entry = self.entry(index)
        with self._naming_failures(f"{self.split}/{index}"):
            group = open_group(self._open()[self.split], str(index))
            stored, rows = (open_integers(group, name) for name in ("adj", "nodes"))
            num_nodes = entry.get("num_nodes", len(rows))
        if stored.shape != (num_nodes, num_nodes) or rows.shape != (num_nodes, 3):
            raise ValueError(
                f"{self.path} does not belong to its meta file: {self.split}/{index} has adj"
                f" {stored.shape} and nodes {rows.shape}, expected {num_nodes} nodes"
            )
        with self._naming_failures(f"{self.split}/{index}"):
            adjacency, nodes = check_distances(stored[()]), rows[()]
            check_nodes(nodes, entry["n_cells"])
        for table, column in ((self._primitives, 0), (self._names, 2)):
            unknown = set(nodes[:, column].tolist()) - set(table)
            if unknown:
                raise ValueError(
                    f"{self.path} does not belong to its meta file: {self.split}/{index} has the id"
                    f" {min(unknown)} in column {column} of nodes, expected one of the"
                    f" {len(table)} that the meta file lists"
                )
        return adjacency, nodes

    def _check_number(self) -> None:
        """Raise ValueError unless the file and the meta file have the same number of networks."""
        count = len(self)
        with self._naming_failures(self.split):
            group = open_group(self._open(), self.split)
            # Counting a million groups would take seconds; looking up two does not.
            is_other = (count and str(count - 1) not in group) or str(count) in group
        if is_other:
            raise ValueError(
                f"{self.path} does not belong to its meta file: the meta file has {count} networks"
                f" in split {self.split!r}, the file {len(group)}"
            )
        self._close()

    @contextlib.contextmanager
    def _naming_failures(self, place: str) -> Iterator[None]:
        """Put the file and a place in it before the text of an error."""
        try:
            yield
        except FILE_ERRORS as error:
            raise ValueError(f"{self.path} cannot be read at {place}: {shorten(error)}") from error

    def _open(self) -> h5py.File:
        # HDF5 handles do not survive a fork.
        if self._file is None or self._file_owner != os.getpid():
            try:
                self._file = h5py.File(self.path, "r")
            except FILE_ERRORS as error:
                raise ValueError(
                    f"{self.path} is not an HDF5 file, or is truncated: {shorten(error)}"
                ) from error
            self._file_owner = os.getpid()
            with self._naming_failures(self.split):
                has_split = self.split in self._file
            if not has_split:
                raise ValueError(f"{self.path} has no split {self.split!r}")
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _current_primitive(name: str, path: Path) -> str:
    """Return a primitive's name without the kernel size that older files append."""
    if name == "fc-b":
        return "bias"
    for primitive in PRIMITIVE_INDEX:
        if name == primitive or name.startswith(f"{primitive}_") and name[-3] in "0123456789":
            return primitive
    raise ValueError(f"{path}: primitives_ext has the unknown primitive {describe_value(name)}")


def _current_name(name: str) -> str:
    """Return a node's name as current files write it; older files differ in three ways."""
    if not name:
        return "input"
    if name.endswith("to_out.0."):
        return f"{name}weight"
    # `_ops.3.1.weight` becomes `_ops.3.op.1.weight`.
    return re.sub(r"_ops\.(\d+)\.(\d)", r"_ops.\1.op.\2", name)


def _find_file(directory: Path, split: str) -> Path:
    candidates = [directory / f"deepnets1m_{split}.hdf5"]
    if split not in ("train", "search"):
        candidates.append(directory / "deepnets1m_eval.hdf5")
    for path in candidates:
        if path.is_file():
            return path
    expected = " or ".join(str(path) for path in candidates)
    raise ValueError(f"directory {directory} has no file for split {split!r}, expected {expected}")


def meta_path(path: Path) -> Path:
    """Return the path of the meta file that belongs to a file of graphs."""
    return path.with_name(f"{path.stem}_meta.json")
