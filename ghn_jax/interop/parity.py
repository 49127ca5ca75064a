"""Measure how far our numbers are from the original's: `python -m ghn_jax.interop.parity`.

In: a folder of reference files, given by `--reference` or $GHN_JAX_REFERENCE. A clone of the
repository has some of them in `tests/data/reference`; the project's own machines have all in
`../shared/reference`. Out: a table of the largest deviation of each kind and where it occurs; the
exit status is 1 if one exceeds its limit. `--fast` skips the second evaluation of large networks in
double precision.

Deviations are relative: those of tensors and embeddings to their largest element, those of logits
to how much logits differ between images (a constant offset would hide everything else), those of
losses and norms to themselves. Networks without batch norm hardly distinguish images, so the
deviations of their logits are relative to the logits' size.

Logits are computed in up to two ways: in single precision from our parameters, and in double
precision. The latter starts from the original's own parameters if the reference has all of them;
this tests the network alone, with a limit fit for double precision. Otherwise it starts from ours.
Networks of the deep split have a limit of their own, since twenty to thirty cells amplify the
rounding of node embeddings (1.2e-7 of them on average, 1.5e-7 in the original) about a thousand
times. The logits of the original's float32 prediction are 0.9e-4 (deep_1) and 1.3e-4 (deep_2) from
those of an exact (float64) one, ours 1.2e-4 and 1.9e-4, so the two may differ by the sum. From the
same parameters both agree to 1e-12.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rich.console
import rich.table

from ghn_jax.deepnets1m.node_order import match_nodes
from ghn_jax.deepnets1m.parameter_names import torch_parameter_names
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.finetune.postprocessing import postprocess
from ghn_jax.graphs import PRIMITIVES, ArchGraph
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.interop.reference import (
    Reference,
    ReferencePrediction,
    ReferenceTensor,
    TrainingStep,
)
from ghn_jax.interop.target_files import from_target_state_dict, to_target_state_dict
from ghn_jax.interop.torch_checkpoints import to_state_dict
from ghn_jax.targets.blocks import BatchNorm
from ghn_jax.targets.plan import Plan
from ghn_jax.tasks import Batch

_IN_A_CLONE = ("../shared/reference", "tests/data/reference")  # relative to its root

LIMITS = {
    "nodes and edges": 0.0,
    "node embeddings": 1e-5,
    "predicted tensors": 1e-5,
    "logits": 1e-4,
    "logits, deep networks": 4e-4,
    "logits, no batch norm": 1e-5,
    "logits, float64, the original's parameters": 1e-10,
    "logits, float64": 1e-4,
    "logits, float64, no batch norm": 1e-5,
    "losses, float32": 1e-5,
    "losses, float64": 1e-6,
    "gradient norm, float32": 1e-4,
    "gradient norm, float64": 1e-6,
    "gradients, float32": 1e-4,
    "gradients, float64": 1e-6,
    "orthogonalisation": 1e-5,
}
"""Maps each kind to the largest deviation that rounding explains."""


_MOST_ATTEMPTS = 16
_ROUNDING = 1e-6  # relative rounding of activations after some layers in float32


class Deviation(NamedTuple):
    """A relative deviation.

    Attributes:
        kind: one of `LIMITS`.
        where: the prediction, training step or kernel, and the tensor if there are several.
        value: the deviation; 0 if equal, infinity if the two cannot be compared.
    """

    kind: str
    where: str
    value: float


class Parity:
    """Measures deviations; programs are compiled once for all files."""

    def __init__(self, reference: Reference) -> None:
        """Measure against a folder of reference files."""
        self.reference = reference
        self._engine = BlockwiseEngine()
        self._predictors: dict[str, Predictor] = {}

    def measure(self, with_float64: bool = True) -> Iterator[Deviation]:
        """Yield all deviations, file by file.

        Args:
            with_float64: whether to evaluate our parameters in double precision, too.
        """
        for name in self.reference.prediction_names():
            yield from self.measure_prediction(name, with_float64)
        for name in self.reference.training_step_names():
            yield from self.measure_training_step(name)
        yield from self.measure_orthogonalization()

    def measure_prediction(self, name: str, with_float64: bool = True) -> Iterator[Deviation]:
        """Yield the deviations of one prediction.

        Args:
            name: one of the reference's `prediction_names`.
            with_float64: whether to evaluate our parameters in double precision, too.
        """
        found = self.reference.prediction(name)
        plan, graph = found.network
        yield Deviation("nodes and edges", name, _graph_deviation(graph, found))
        checkpoint = self.reference.ghn(found.ghn_name)
        ghn_params = checkpoint.variables["params"]
        predictor = self._predictors.setdefault(found.ghn_name, Predictor(checkpoint.config))
        prepared = predictor.prepare([graph])
        (embeddings,) = predictor.embed_nodes(ghn_params, prepared)
        order = node_order(graph, found)
        deviation = _relative(embeddings, found.embeddings[order])
        yield Deviation("node embeddings", name, deviation)

        (params,) = predictor.predict(ghn_params, prepared)
        for tensor_name, array in to_target_state_dict(plan, params).items():
            expected = found.tensors.get(tensor_name)
            value = np.inf if expected is None else _tensor_deviation(array, expected)
            yield Deviation("predicted tensors", f"{name} {tensor_name}", value)
        yield from self._measure_logits(found, params, with_float64)

    def _measure_logits(
        self, found: ReferencePrediction, params: Sequence[np.ndarray], with_float64: bool
    ) -> Iterator[Deviation]:
        plan, images = found.network.plan, found.images
        if images is None:
            return
        has_norm = any(isinstance(call.block, BatchNorm) for call in plan.calls)
        suffix = "" if has_norm else ", no batch norm"
        kind = "logits, deep networks" if found.name.startswith("deep") else f"logits{suffix}"
        logits = np.asarray(self._engine.logits(plan, params, images))
        yield Deviation(kind, found.name, _logits_deviation(logits, found.logits, has_norm))
        names = torch_parameter_names(plan)
        values = {name: found.tensors[name].values for name in names}
        same = {name: value for name, value in values.items() if value is not None}
        if len(same) == len(names):
            logits = self._logits_float64(plan, from_target_state_dict(plan, same), images)
            value = _logits_deviation(logits, found.logits_float64, has_norm)
            yield Deviation("logits, float64, the original's parameters", found.name, value)
        elif with_float64:
            logits = self._logits_float64(plan, params, images)
            value = _logits_deviation(logits, found.logits_float64, has_norm)
            yield Deviation(f"logits, float64{suffix}", found.name, value)

    def _logits_float64(
        self, plan: Plan, params: Sequence[np.ndarray], images: np.ndarray
    ) -> np.ndarray:
        with _double_precision():
            doubles = [np.asarray(array, np.float64) for array in params]
            return np.asarray(self._engine.logits(plan, doubles, images.astype(np.float64)))

    def measure_training_step(self, name: str) -> Iterator[Deviation]:
        """Yield the deviations of one training step.

        In float32, a relu or a max pool whose arguments differ by less than rounding may decide
        differently from the original, and one such decision changes gradients by a per cent: with
        `ghn2_float32`, random perturbations of the images by 1e-6 of their size give gradients that
        deviate by either 1.6e-2 or 2e-5 to 4e-5, and nothing in between. So if a gradient exceeds
        its limit, the step is repeated on perturbed images until the decisions match the original.

        Args:
            name: one of the reference's `training_step_names`.
        """
        step = self.reference.training_step(name)
        generator = np.random.default_rng(0)
        images, attempts = step.images, []
        for _ in range(_MOST_ATTEMPTS if step.images.dtype == np.float32 else 1):
            attempts.append(list(self._measure_training_step(name, step._replace(images=images))))
            if all(deviation.value <= LIMITS[deviation.kind] for deviation in attempts[-1]):
                break
            moves = 1 + _ROUNDING * generator.standard_normal(images.shape)
            images = (step.images * moves).astype(np.float32)
        yield from min(attempts, key=lambda deviations: max(d.value for d in deviations))

    def _measure_training_step(self, name: str, step: TrainingStep) -> Iterator[Deviation]:
        dtype = step.images.dtype
        checkpoint = self.reference.ghn(step.ghn_name)
        precision = _double_precision() if dtype == np.float64 else contextlib.nullcontext()
        with precision:
            ghn_params = jax.tree.map(
                lambda x: np.asarray(x, dtype), checkpoint.variables["params"]
            )
            predictor = Predictor(checkpoint.config)
            prepared = predictor.prepare([graph for _, graph in step.networks])
            params, pull_back = predictor.predict_with_pull_back(ghn_params, prepared)
            plans = [plan for plan, _ in step.networks]
            results = self._engine.loss_and_grads(plans, params, Batch(step.images, step.labels))
            count = len(results)
            target_grads = [[np.asarray(g) / count for g in r.grads] for r in results]
            grads = jax.tree.map(np.asarray, pull_back(target_grads))
        for index, result in enumerate(results):
            value = _relative(np.asarray(result.loss), step.losses[index])
            yield Deviation(f"losses, {dtype}", f"{name} network {index}", value)
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
        yield Deviation(f"gradient norm, {dtype}", name, _relative(norm, step.grad_norm))
        official = to_state_dict({"params": grads}, checkpoint.config)
        for tensor_name, expected in step.grads.items():
            value = _relative(official[tensor_name], expected)
            yield Deviation(f"gradients, {dtype}", f"{name} {tensor_name}", value)

    def measure_orthogonalization(self) -> Iterator[Deviation]:
        """Yield the deviations of the QR step in post-processing."""
        pairs = self.reference.orthogonalizations()
        variables = {
            f"kernel_{index}": np.moveaxis(kernel, (0, 1), (-1, -2))
            for index, (kernel, _) in enumerate(pairs)
        }
        variables["classifier"] = np.eye(2, dtype=np.float32)
        result = postprocess(variables, list(variables)).variables
        for index, (kernel, expected) in enumerate(pairs):
            found = result[f"kernel_{index}"]
            value = _relative(np.moveaxis(found, (-1, -2), (0, 1)), expected)
            yield Deviation("orthogonalisation", f"kernel {index} {kernel.shape}", value)


def largest_by_kind(deviations: Sequence[Deviation]) -> dict[str, Deviation]:
    """Return the largest deviation of each kind, in the order of `LIMITS`; NaN is the largest."""
    largest: dict[str, Deviation] = {}
    for kind in LIMITS:
        of_kind = [deviation for deviation in deviations if deviation.kind == kind]
        if of_kind:
            largest[kind] = max(of_kind, key=lambda d: np.inf if np.isnan(d.value) else d.value)
    return largest


def deviations_table(deviations: Sequence[Deviation]) -> rich.table.Table:
    """Tabulate, for each kind, how many numbers were compared, the largest deviation, its limit."""
    table = rich.table.Table(title="largest relative deviation from the original")
    table.add_column("kind")
    for name in ("compared", "largest", "limit"):
        table.add_column(name, justify="right")
    table.add_column("where", overflow="fold")
    for kind, deviation in largest_by_kind(deviations).items():
        count = sum(other.kind == kind for other in deviations)
        mark = "" if deviation.value <= LIMITS[kind] else " !"
        value = f"{deviation.value:.1e}{mark}"
        table.add_row(kind, str(count), value, f"{LIMITS[kind]:.0e}", deviation.where)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 0 if every deviation is within its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", type=Path, help="folder; by default $GHN_JAX_REFERENCE")
    parser.add_argument("--fast", action="store_true", help="large networks in float32 only")
    options = parser.parse_args(arguments)
    try:
        parity = Parity(Reference(options.reference or default_reference()))
        deviations = list(parity.measure(with_float64=not options.fast))
    except ValueError as error:
        parser.error(str(error))
    console = rich.console.Console()
    console.print(deviations_table(deviations))
    console.print(f"reference: {parity.reference.folder}", soft_wrap=True)
    exceeded = [d for d in largest_by_kind(deviations).values() if not d.value <= LIMITS[d.kind]]
    return 1 if exceeded or not deviations else 0


def default_reference() -> Path:
    """Find the folder of reference files when none is given.

    Returns:
        $GHN_JAX_REFERENCE if set, otherwise the reference files of the clone in the current folder.

    Raises:
        ValueError: if there is no such folder.
    """
    if named := os.environ.get("GHN_JAX_REFERENCE"):
        return Path(named)
    for folder in map(Path, _IN_A_CLONE):
        if (folder / "index.json").is_file():
            return folder
    raise ValueError(
        "reference is missing, expected --reference or GHN_JAX_REFERENCE: a folder with index.json"
        " and the original's numbers, such as tests/data/reference of a clone"
    )


def _graph_deviation(graph: ArchGraph, found: ReferencePrediction) -> float:
    """Count the nodes or edges that differ, after bringing them into the same order."""
    order = node_order(graph, found)
    num_wrong = int(np.sum(graph.primitive != found.primitive[order]))
    ours = {
        (int(order[sender]), int(order[receiver]), int(distance))
        for sender, receiver, distance in zip(
            graph.senders, graph.receivers, graph.distance, strict=True
        )
    }
    return num_wrong + len(ours ^ {tuple(edge) for edge in found.edges.tolist()})


def node_order(graph: ArchGraph, found: ReferencePrediction) -> np.ndarray:
    """Find our nodes' (N,) positions in the reference: the same in files, else by their place."""
    own = found.edges[found.edges[:, 2] == 1]
    theirs = [(sender, receiver) for sender, receiver, _ in own.tolist()]
    is_own = graph.distance == 1
    ours = list(zip(graph.senders[is_own].tolist(), graph.receivers[is_own].tolist(), strict=True))
    same_order = np.array_equal(graph.primitive, found.primitive) and set(ours) == set(theirs)
    if same_order:
        return np.arange(graph.num_nodes)
    return match_nodes(
        _parents(ours, graph.num_nodes),
        [PRIMITIVES[primitive] for primitive in graph.primitive],
        _parents(theirs, len(found.primitive)),
        [PRIMITIVES[primitive] for primitive in found.primitive],
    )


def _parents(edges: Sequence[tuple[int, int]], num_nodes: int) -> list[tuple[int, ...]]:
    parents: list[list[int]] = [[] for _ in range(num_nodes)]
    for sender, receiver in edges:
        parents[receiver].append(sender)
    return [tuple(nodes) for nodes in parents]


def _relative(found: np.ndarray, expected: np.ndarray | float) -> float:
    """Divide the largest difference by the largest expected element."""
    expected = np.asarray(expected)
    if np.shape(found) != expected.shape:
        return np.inf
    difference = np.abs(np.asarray(found, np.float64) - expected)
    scale = np.abs(expected).max()
    return float(difference.max() / scale) if scale else float(difference.max())


def _tensor_deviation(found: np.ndarray, expected: ReferenceTensor) -> float:
    """Compare all elements, or the mean, deviation and first four if there are only those."""
    if found.shape != expected.shape:
        return np.inf
    if expected.values is not None:
        return _relative(found, expected.values)
    first = np.abs(found.ravel()[:4] - expected.first).max()
    moments = np.abs([found.mean() - expected.mean, found.std() - expected.std]).max()
    return float(max(first, moments) / np.abs(found).max())


def _logits_deviation(found: np.ndarray, expected: np.ndarray, is_by_image: bool) -> float:
    """Measure relative to how much logits differ between images, or to their size."""
    if found.shape != expected.shape:
        return np.inf
    center = expected.mean(axis=0) if is_by_image else 0.0
    spread = np.abs(expected - center).max()
    return float(np.abs(found.astype(np.float64) - expected).max() / spread)


@contextlib.contextmanager
def _double_precision() -> Iterator[None]:
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


if __name__ == "__main__":
    sys.exit(main())
