"""Read numbers computed by the original implementation.

In: a folder like the project's `shared/reference`, whose README says how its files were made; a
part of it comes with the tests. Out: the original's inputs and outputs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ghn_jax.configuration.validation import shorten
from ghn_jax.data.array_files import read_arrays
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.evaluation.architecture_specs import (
    PlannedNetwork,
    resolve_architecture,
    stored_network,
)
from ghn_jax.interop.torch_checkpoints import TorchCheckpoint, load_torch_checkpoint

SMALL_SIZE, LARGE_SIZE = 32, 224  # pixels of images in the two settings


class ReferenceTensor(NamedTuple):
    """A parameter tensor that the original predicted, in PyTorch's layout.

    Attributes:
        shape: the tensor's shape.
        mean: mean of all elements.
        std: standard deviation of all elements.
        first: the first four elements.
        values: all elements, if the file has them.
    """

    shape: tuple[int, ...]
    mean: float
    std: float
    first: np.ndarray
    values: np.ndarray | None


class ReferencePrediction(NamedTuple):
    """A network and what a GHN of the original predicted for it.

    Attributes:
        name: the prediction's name, such as "val_0_ghn2".
        ghn_name: name of the checkpoint's file without ".pt".
        network: plan and graph; the graph is the file's if the network comes from one.
        primitive: (N,) primitives of the nodes, as the original read them.
        edges: (E, 3) rows (from, to, distance), as the original read them.
        embeddings: (N, D) node embeddings, as the decoders read them.
        tensors: the predicted tensors by name.
        logits: (B, K) float32, with batch norm using the statistics of the batch.
        logits_float64: logits of the same parameters, evaluated in double precision.
        images: (B, S, S, 3) float32, the images of the logits; None if the folder lacks them.
    """

    name: str
    ghn_name: str
    network: PlannedNetwork
    primitive: np.ndarray
    edges: np.ndarray
    embeddings: np.ndarray
    tensors: dict[str, ReferenceTensor]
    logits: np.ndarray
    logits_float64: np.ndarray
    images: np.ndarray | None


class TrainingStep(NamedTuple):
    """One training step of the original.

    Attributes:
        ghn_name: name of the checkpoint's file without ".pt".
        networks: the networks' plans, with the file's graphs.
        images: (B, S, S, 3), in the step's precision.
        labels: (B,) int32.
        losses: the loss of each network.
        grad_norm: norm of the gradient with respect to all parameters of the GHN.
        grads: gradients of some of the parameters, by official name.
    """

    ghn_name: str
    networks: list[PlannedNetwork]
    images: np.ndarray
    labels: np.ndarray
    losses: np.ndarray
    grad_norm: float
    grads: dict[str, np.ndarray]


class Reference:
    """A folder of reference files."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Args:
            folder: folder with `index.json` and any number of `.pt` files, `predict_*.npz` files
                and others.

        Raises:
            ValueError: if there is no index, or it is damaged. All that is read from the folder
                later raises ValueError, too, if it is damaged.
        """
        self.folder = folder
        path = folder / "index.json"
        if not path.is_file():
            raise ValueError(f"reference is {str(folder)!r}, expected a folder with index.json")
        self._ghns: dict[str, TorchCheckpoint] = {}
        with self._naming("index.json"):
            self._index = {entry["name"]: entry for entry in json.loads(path.read_text("utf-8"))}

    def prediction_names(self) -> list[str]:
        """The names of all predictions whose arrays and GHN are in the folder."""
        with self._naming("index.json"):
            return [
                name
                for name, entry in self._index.items()
                if self._has(f"predict_{name}.npz", f"{entry['ghn']}.pt")
            ]

    def training_step_names(self) -> list[str]:
        """The names of all training steps in the folder, such as "ghn2_float64"."""
        paths = sorted(self.folder.glob("train_step_*.npz"))
        return [path.stem.removeprefix("train_step_") for path in paths]

    def ghn(self, name: str) -> TorchCheckpoint:
        """Return a checkpoint from the folder, which is read only once."""
        if name not in self._ghns:
            self._ghns[name] = load_torch_checkpoint(self.folder / f"{name}.pt")
        return self._ghns[name]

    def prediction(self, name: str) -> ReferencePrediction:
        """Read a prediction.

        Args:
            name: one of `prediction_names`.
        """
        with self._naming(f"prediction {name}"):
            return self._prediction(name)

    def _prediction(self, name: str) -> ReferencePrediction:
        entry = self._index[name]
        config = self.ghn(entry["ghn"]).config
        large = entry["ghn"].endswith("imagenet")
        arrays = self._arrays(f"predict_{name}.npz")
        split, _, index = name.partition("_")
        spec = f"{split}/{index.partition('_')[0]}" if index[0].isdigit() else split
        network = resolve_architecture(
            spec,
            LARGE_SIZE if large else SMALL_SIZE,
            config.num_classes,
            config.virtual_edges,
            self.folder,
        )
        with np.errstate(over="ignore"):  # what no float32 holds is infinite, as a deviation is
            tensors = {
                tensor["name"]: ReferenceTensor(
                    tuple(tensor["shape"]),
                    tensor["mean"],
                    tensor["std"],
                    np.array(tensor["first"], np.float32),
                    arrays.get(f"param/{tensor['name']}"),
                )
                for tensor in entry["tensors"]
            }
        fields = ("primitive", "edges", "embeddings", "logits", "logits_float64")
        return ReferencePrediction(
            name=name,
            ghn_name=entry["ghn"],
            network=network,
            tensors=tensors,
            images=self._images(large),
            **{field: arrays[field] for field in fields},
        )

    def training_step(self, name: str) -> TrainingStep:
        """Read a training step.

        Args:
            name: one of `training_step_names`.
        """
        with self._naming(f"training step {name}"):
            return self._training_step(name)

    def _training_step(self, name: str) -> TrainingStep:
        ghn_name, dtype = name.rsplit("_", 1)
        config = self.ghn(ghn_name).config
        arrays = self._arrays(f"train_step_{name}.npz")
        nets = DeepNets1M(self.folder, "train")
        channels = int(arrays["C"])
        data = self._arrays("images.npz")
        return TrainingStep(
            ghn_name=ghn_name,
            networks=[
                stored_network(nets, int(index), config.num_classes, config.virtual_edges, channels)
                for index in arrays["architectures"]
            ],
            images=data["images"].astype(dtype),
            labels=data["labels"].astype(np.int32),
            losses=arrays["losses"],
            grad_norm=float(arrays["grad_norm"]),
            grads={
                key.removeprefix("grad/"): value
                for key, value in arrays.items()
                if key.startswith("grad/")
            },
        )

    def orthogonalizations(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Read pairs of a kernel, in PyTorch's layout, and the result of post-processing it."""
        if not self._has("orthogonalize.npz"):
            return []
        arrays = self._arrays("orthogonalize.npz")
        with self._naming("orthogonalize.npz"):
            return [(arrays[f"w{k}"], arrays[f"orth{k}"]) for k in range(len(arrays) // 2)]

    def _images(self, large: bool) -> np.ndarray | None:
        if not large:
            return self._arrays("images.npz")["images"]
        if not self._has("image224.npy"):
            return None
        image = read_arrays(self.folder / "image224.npy")
        if not isinstance(image, np.ndarray):
            raise ValueError(f"{self.folder / 'image224.npy'} holds several arrays, expected one")
        return np.concatenate([image, image[:, :, ::-1]])  # the image and its reflection

    def _has(self, *names: str) -> bool:
        return all((self.folder / name).is_file() for name in names)

    def _arrays(self, name: str) -> dict[str, Any]:
        arrays = read_arrays(self.folder / name)
        if isinstance(arrays, np.ndarray):
            raise ValueError(f"{self.folder / name} holds a single array, expected several")
        return arrays

    @contextlib.contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Put the folder and what is read from it before the text of an error."""
        try:
            yield
        except (
            *(ValueError, OSError, KeyError, TypeError, IndexError, AttributeError),
            *(RecursionError, OverflowError),
        ) as error:
            reason = f"{type(error).__name__}: {shorten(error)}"
            raise ValueError(f"{self.folder}: {what} cannot be read ({reason})") from error
