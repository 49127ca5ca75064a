"""What the HDF5 files of DeepNets-1M graphs may hold, checked before its first use.

In: an open file, and arrays read from it. Out: groups and data sets that lie in this file and take
no more memory than stated; distances of a directed acyclic graph; or a ValueError. A data set can
name any other file as its contents, be declared without being stored, or expand to any size.
"""

from __future__ import annotations

import math

import numpy as np

from ghn_jax.configuration import limits
from ghn_jax.configuration.validation import describe_value
from ghn_jax.extras import extra
from ghn_jax.graphs.arch_graph import MAX_VIRTUAL_DISTANCE

with extra("train", "DeepNets-1M files"):
    import h5py

FILE_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,
)
"""What h5py raises where a file is damaged."""
_LARGEST_COMPRESSED = 1 << 20  # bytes of a data set; gzip expands them 1,032 times at most
_LARGEST_CHUNK = limits.NUM_NODES**2  # elements


def open_group(parent: h5py.Group, name: str) -> h5py.Group:
    """Return a group that lies in the file itself; else raise ValueError."""
    _check_link(parent, name)
    group = parent[name]
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{name} is a {type(group).__name__}, expected a group")
    return group


def open_integers(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return a data set of integers whose values lie in the file itself, without reading it.

    Args:
        group: the group of a network.
        name: name of the data set.

    Returns:
        The data set, which takes at most about 1 GB when it is read.

    Raises:
        ValueError: if it is not such a data set.
    """
    _check_link(group, name)
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{name} is a {type(dataset).__name__}, expected a data set")
    if dataset.dtype.kind not in "iu":
        raise ValueError(f"{name} has the dtype {dataset.dtype}, expected integers")
    shape = dataset.shape or ()
    if len(shape) != 2 or max(shape) > limits.NUM_NODES:
        raise ValueError(
            f"{name} has shape {shape}, expected two axes of at most {limits.NUM_NODES}"
        )
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{name} lies in other files, expected it in this one")
    size, file_size = dataset.id.get_storage_size(), dataset.file.id.get_filesize()
    if size > file_size:
        raise ValueError(f"{name} has {size} bytes, expected at most the file's {file_size}")
    if dataset.chunks is None:
        if size != dataset.nbytes:
            raise ValueError(f"{name} has {size} bytes, expected the {dataset.nbytes} of its shape")
        return dataset
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    if not set(filters) <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
        raise ValueError(f"{name} has the filters {filters}, expected gzip, shuffle or none")
    if math.prod(dataset.chunks) > _LARGEST_CHUNK:
        raise ValueError(
            f"{name} has chunks of shape {dataset.chunks}, expected at most {_LARGEST_CHUNK}"
            " elements"
        )
    expected = math.prod(
        math.ceil(length / chunk) for length, chunk in zip(shape, dataset.chunks, strict=True)
    )
    if dataset.id.get_num_chunks() != expected:
        raise ValueError(
            f"{name} has {dataset.id.get_num_chunks()} of the {expected} chunks of its shape"
        )
    if filters and size > _LARGEST_COMPRESSED:
        raise ValueError(
            f"{name} has {size} compressed bytes, expected at most {_LARGEST_COMPRESSED}"
        )
    return dataset


def check_distances(adjacency: np.ndarray) -> np.ndarray:
    """Check that an array holds the distances of a directed acyclic graph.

    Args:
        adjacency: (N, N) integers [from, to]; 1 is an edge, 0 no path, or one that is longer than
            the longest that the file notes, at least 50.

    Returns:
        The array as uint8.

    Raises:
        ValueError: if it does not.
    """
    num_nodes = len(adjacency)
    if adjacency.size and not 0 <= adjacency.min() <= adjacency.max() <= 255:
        raise ValueError(
            f"adj has values in {adjacency.min()}..{adjacency.max()}, expected distances in 0..255"
        )
    adjacency = adjacency.astype(np.uint8)
    edges = adjacency == 1
    order = _topological_order(edges)
    if len(order) < num_nodes:
        raise ValueError("adj has a cycle, expected a directed acyclic graph")
    # The distance to a node is 1 plus the least of those to its predecessors, each nearer to the
    # start in this order.
    unreached = np.uint16(2 * num_nodes + 512)
    stored = np.where(adjacency == 0, unreached, adjacency)
    np.fill_diagonal(stored, 0)
    longest = max(MAX_VIRTUAL_DISTANCE, int(adjacency.max(initial=0)))
    for node in order:
        predecessors = np.flatnonzero(edges[:, node])
        expected = np.full(num_nodes, unreached)
        if len(predecessors):
            expected = np.minimum(stored[:, predecessors].min(axis=1) + 1, unreached)
        expected[node] = 0
        # Beyond the longest distance that is noted, a path is as none.
        expected[expected > longest] = unreached
        if (wrong := np.flatnonzero(stored[:, node] != expected)).size:
            start = wrong[0]
            raise ValueError(
                f"adj[{start}, {node}] is {adjacency[start, node]}, expected"
                f" {0 if expected[start] == unreached else expected[start]}, the length of the"
                " shortest path along its edges"
            )
    if adjacency.diagonal().any():
        raise ValueError("adj has values on its diagonal, expected 0")
    return adjacency


def _topological_order(edges: np.ndarray) -> list[int]:
    """Return the nodes so that edges run forwards; fewer than all if there is a cycle."""
    if not np.tril(edges).any():
        return list(range(len(edges)))  # as files are written
    num_left = edges.sum(axis=0)
    order = np.flatnonzero(num_left == 0).tolist()
    for node in order:  # grows
        after = np.flatnonzero(edges[node])
        num_left[after] -= 1
        order += after[num_left[after] == 0].tolist()
    return order


def check_nodes(nodes: np.ndarray, num_cells: int) -> None:
    """Raise ValueError unless the rows of `nodes`, (N, 3) integers, are ids, the cell in range."""
    if nodes.size and nodes.min() < 0:
        raise ValueError(f"nodes has the id {nodes.min()}, expected ids from 0")
    cells = nodes[:, 1]
    if nodes.size and cells.max() >= num_cells:
        raise ValueError(
            f"nodes has the cell {describe_value(int(cells.max()))}, expected 0..{num_cells - 1}"
        )


def _check_link(parent: h5py.Group, name: str) -> None:
    link = parent.get(name, getlink=True)
    if link is None:
        raise ValueError(f"it has no {name}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} lies elsewhere ({type(link).__name__}), expected it in this file")
