"""Numbers computed by the original implementation, read for tests.

`tests/data/reference` holds a few of them, so that parity is tested everywhere; where the variable
GHN_JAX_REFERENCE names the folder of all, tests marked `reference` compare with more of them. What
is in neither folder skips its test. See the README there.
"""

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pytest

from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.graphs import GraphBatch, ParameterTensor
from ghn_jax.hypernetworks import GHNConfig, shape_vocabulary
from ghn_jax.interop.torch_checkpoints import (
    TorchCheckpoint,
    convert_state_dict,
    load_torch_checkpoint,
)

LOCAL = Path(__file__).parent / "data" / "reference"
WHOLE = Path(os.environ["GHN_JAX_REFERENCE"]) if "GHN_JAX_REFERENCE" in os.environ else None
FOLDER = LOCAL if WHOLE is None else WHOLE
if not (FOLDER / "index.json").is_file():
    raise ValueError(f"GHN_JAX_REFERENCE is {str(WHOLE)!r}, expected a folder with index.json")


class PredictedTensor(NamedTuple):
    """What the original predicted for one tensor, PyTorch's layout.

    Attributes:
        tensor: Its description in this project's terms.
        mean, std: Of all elements.
        first: The first four elements.
        values: All of them, where the reference has them.
    """

    tensor: ParameterTensor
    mean: float
    std: float
    first: np.ndarray
    values: np.ndarray | None

    def check(self, predicted: np.ndarray, tolerance: float = 1e-5) -> None:
        """Compare a prediction in Flax layout, errors relative to its largest element."""
        found = _to_torch_layout(predicted, self.tensor.role)
        scale = float(np.abs(found).max())
        name = self.tensor.path[0]
        if self.values is not None:
            assert found.shape == self.values.shape
            np.testing.assert_allclose(found, self.values, 0, tolerance * scale, err_msg=name)
            return
        first = found.ravel()[:4]
        np.testing.assert_allclose(first, self.first, 0, tolerance * scale, err_msg=name)
        moments = [found.mean(), found.std()]
        np.testing.assert_allclose(
            moments, [self.mean, self.std], 0, tolerance * scale, err_msg=name
        )


class Prediction(NamedTuple):
    """A graph and what a GHN of the original made of it.

    Attributes:
        batch: The graph as a batch of one.
        embeddings: (N, D), what the decoder reads.
        tensors: Every tensor predicted.
    """

    batch: GraphBatch
    embeddings: np.ndarray
    tensors: list[PredictedTensor]


def find_reference(name: str) -> Path:
    """Return the path of a reference file, or skip the test."""
    for folder in (FOLDER, LOCAL):
        if (folder / name).exists():
            return folder / name
    skip_for_want_of(name)


def find_split(split: str) -> DeepNets1M:
    """Open a split of the official files, or skip the test."""
    for folder in (FOLDER, LOCAL.parent):
        try:
            return DeepNets1M(folder, split)
        except (ValueError, FileNotFoundError):  # another split, or no file
            if folder is WHOLE:
                raise
    skip_for_want_of(f"split {split}")


def skip_for_want_of(what: str) -> NoReturn:
    """Skip the test: what it compares with is not in the repository."""
    pytest.skip(f"{what} is in the whole reference only, which GHN_JAX_REFERENCE would name")


@functools.cache
def load_ghn(name: str) -> TorchCheckpoint:
    """Load a GHN of the original; of a GHN-2 in the repository only what embeds nodes."""
    if name != "ghn2" or (FOLDER / "ghn2.pt").exists():
        return load_torch_checkpoint(find_reference(f"{name}.pt"))
    state = dict(np.load(LOCAL / "ghn2_embedding.npz"))
    pixels, tile = 128 * 11 * 11, 64 * 64
    for layer, shape in {
        "fc.0": (pixels, 32),
        "conv.0": (256, 128, 1, 1),
        "conv.2": (tile, 256, 1, 1),
        "class_layer_predictor.1": (10, 64, 1, 1),
    }.items():
        state[f"decoder.{layer}.weight"] = np.zeros(shape, np.float32)
        state[f"decoder.{layer}.bias"] = np.zeros(shape[0], np.float32)
    config = GHNConfig()
    return TorchCheckpoint(config, convert_state_dict(state, config), 0)


def load_prediction(name: str, config: GHNConfig) -> Prediction:
    """Load a prediction such as "val_2_ghn1" for a GHN of the given config."""
    with np.load(find_reference(f"predict_{name}.npz")) as file:
        arrays = dict(file)
    nodes = json.loads((LOCAL / "nodes.json").read_text())[name.rsplit("_", 1)[0]]
    num_nodes = len(nodes)
    shapes = np.array([_shape_of_node(node) for node in nodes], np.int32)
    distance = np.zeros((num_nodes, num_nodes), np.uint8)
    senders, receivers, distances = arrays["edges"].T
    distance[receivers, senders] = distances
    vocabulary = shape_vocabulary(config.num_classes, config.max_shape[2])
    batch = GraphBatch(
        primitive=arrays["primitive"][None].astype(np.int32),
        shape_index=vocabulary.lookup(shapes)[None],
        distance=distance[None],
        node_mask=np.ones((1, num_nodes), bool),
    )
    return Prediction(batch, arrays["embeddings"], _read_tensors(name, nodes, arrays))


@functools.cache
def _read_index(path: Path) -> dict[str, dict]:
    return {entry["name"]: entry for entry in json.loads(path.read_text())}


def _read_tensors(name, nodes, arrays) -> list[PredictedTensor]:
    index = _read_index(find_reference("index.json"))
    entries = {entry["name"]: entry for entry in index[name]["tensors"]}
    names = [node[0] for node in nodes if node and node[0]]
    tensors = []
    for position, node in enumerate(nodes):
        if not node or not node[0]:
            continue
        for tensor_name, role in _roles(node[0], node[1], names[-2:]):
            entry = entries[tensor_name]
            tensor = ParameterTensor(
                (tensor_name,), _to_flax_shape(entry["shape"], role), position, role
            )
            first = np.array(entry["first"], np.float32)
            values = arrays.get(f"param/{tensor_name}")
            tensors.append(PredictedTensor(tensor, entry["mean"], entry["std"], first, values))
    return tensors


def _roles(name, shape, last_names):
    # The tensors of a node and their roles; the node of a norm is named after its scale.
    module, kind = name.rsplit(".", 1)
    if name in last_names:
        return [(name, f"classifier_{'kernel' if kind == 'weight' else 'bias'}")]
    if len(shape) == 1 and kind == "weight":
        return [(name, "scale"), (f"{module}.bias", "bias")]
    if len(shape) == 1:
        return [(name, "bias")]
    if name == "pos_enc.weight":
        return [(name, "position")]
    return [(name, "depthwise" if len(shape) == 4 and shape[1] == 1 else "kernel")]


def _shape_of_node(node) -> tuple[int, ...]:
    shape = node[1] if node else (0, 0, 0, 0)
    return (*shape, *(1,) * (4 - len(shape)))


def _to_flax_shape(shape, role) -> tuple[int, ...]:
    if role == "position":
        return (1, shape[2], shape[3], shape[1])
    return tuple(shape[2:]) + tuple(shape[1::-1]) if len(shape) > 1 else tuple(shape)


def _to_torch_layout(x: np.ndarray, role: str) -> np.ndarray:
    if role == "position":
        return x.transpose(0, 3, 1, 2)
    return np.moveaxis(x, (-1, -2), (0, 1)) if x.ndim > 1 else x
